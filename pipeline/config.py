"""The whole configuration: one section per part, in the order of the data, checked together.

A section is the dataclass that stands beside the class it configures, so that ``mtmsd`` needs no
configuration library. Files are YAML; ``--set section.key=value`` overrides; unknown keys are refused.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mtmsd.classifier import ClassifierConfig
from mtmsd.diffusion import DiffusionConfig
from mtmsd.features import FeatureConfig, feature_width
from mtmsd.fusion import FusionConfig
from mtmsd.heads import CLASSIFIERS, FUSIONS, check_parts
from mtmsd.purify import PurifyConfig
from mtmsd.spectra import spectra_width
from mtmsd.spectral import ReduceConfig
from mtmsd.split import SplitConfig
from mtmsd.steps import PretrainConfig
from mtmsd.supertokens import SupertokenConfig
from mtmsd.unet import UNetConfig
from mtmsd.windows import PatchConfig
from pipeline.errors import UserError, in_yaml

_TILE = 144
_KEPT_BY_WEIGHT = 2
"""Timesteps that remain with ``features.timesteps: auto`` (docs/parts.md: no accuracy lost)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MapConfig(_Section):
    """The map and its unit of work."""

    tile: int | None = Field(default=None, ge=1)
    """Side of a tile, pixels: one row of the dataset, one chunk of the map; a multiple of
    ``patches.stride``. Absent: the multiple nearest to 144 or, where blocks blend and that is more, six
    strides."""
    pixels: int | None = Field(default=None, ge=1)
    """Pixels that the ensemble classifies at once; absent: as many as keep their features in the cache."""
    regions: Literal["supertokens"] | None = None
    """Who votes on each pixel's class once all pixels have theirs: ``supertokens``, soft clusters of alike
    neighbouring pixels; absent: nobody."""


class PolygonConfig(_Section):
    """The map as polygons."""

    min_px: int | None = Field(default=None, ge=1)
    """Smallest patch of map.gpkg, pixels; a smaller one joins its largest neighbour. Absent: no polygons."""


class ClusterConfig(_Section):
    """Who does the work. Workers and threads can touch results in the last bits; actors never do."""

    actors: int | None = Field(default=None, ge=1)
    """Actors that extract features and map; absent: all CPUs / threads, or one per GPU."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of an actor."""
    train_workers: int = Field(default=1, ge=1)
    """Data-parallel workers of pretraining."""
    min_train_workers: int | None = Field(default=None, ge=1)
    """Fewest workers that go on where nodes are lost; absent: pretraining waits for room for all."""
    train_threads: int | None = Field(default=None, ge=1)
    """Torch threads of a pretraining worker; absent: the node's CPUs shared by its workers."""
    gpu: bool | None = None
    """Whether actors and workers take a GPU each; absent: when the cluster has one."""


class Config(_Section):
    """Everything that decides a run, and its seed."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of training, splits and ensemble; the features' noise has its own."""
    reduce: ReduceConfig = ReduceConfig()
    patches: PatchConfig = PatchConfig()
    unet: UNetConfig = UNetConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretrain: PretrainConfig = PretrainConfig()
    features: FeatureConfig = FeatureConfig()
    split: SplitConfig = SplitConfig()
    purify: PurifyConfig = PurifyConfig()
    fusion: FusionConfig = FusionConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    map: MapConfig = MapConfig()
    supertokens: SupertokenConfig = SupertokenConfig()
    polygons: PolygonConfig = PolygonConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _timesteps_by_weight(cls, values: Any) -> Any:
        """``features.timesteps: auto``: the usual ones, of which the fusion's learned weights keep a few."""
        features = values.get("features") if isinstance(values, dict) else None
        if not isinstance(features, dict) or features.get("timesteps") != "auto":
            return values
        given = values.get("fusion", {})
        if not isinstance(given, dict) or not isinstance(given.get("kind", ""), str):
            return values  # and be refused for that
        fusion: dict[str, Any] = {"kind": FusionConfig.kind} | given
        kind = FUSIONS.get(fusion["kind"])
        if kind and not kind.weighs_timesteps:
            raise ValueError(
                "features.timesteps: auto needs fusion.kind hyperfeatures, whose weights choose them, found "
                f"fusion.kind {fusion['kind']}"
            )
        usual = {name: value for name, value in features.items() if name != "timesteps"}
        fusion["keep_timesteps"] = fusion.get("keep_timesteps") or _KEPT_BY_WEIGHT
        return values | {"features": usual, "fusion": fusion}

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        for name, side in (("size", self.patches.size), ("window", self.patches.side)):
            if side % self.unet.downsampling:
                raise ValueError(
                    f"patches.{name} must be a multiple of {self.unet.downsampling} (unet.multipliers has "
                    f"{len(self.unet.multipliers)} levels), found {side}"
                )
        if self.features.stages[-1] >= self.unet.stages:
            raise ValueError(
                f"features.stages must be below {self.unet.stages}, the decoder stages of unet, "
                f"found {self.features.stages[-1]}"
            )
        feature_width(self.unet, self.features.stages, self.patches.side)
        if self.unet.cuts and self.unet.cuts[-1] >= self.diffusion.steps:
            raise ValueError(
                f"unet.cuts must be below diffusion.steps ({self.diffusion.steps}), "
                f"found {self.unet.cuts[-1]}"
            )
        if self.features.timesteps[-1] >= self.diffusion.steps:
            raise ValueError(
                f"features.timesteps must be below diffusion.steps ({self.diffusion.steps}), "
                f"found {self.features.timesteps[-1]}"
            )
        check_parts(self.classifier, self.fusion, self.features, self.patches, self.reduce.components)
        if self.tile % self.patches.stride:
            raise ValueError(
                f"map.tile must be a multiple of patches.stride ({self.patches.stride}), found {self.tile}"
            )
        if self.map.regions is None and self.supertokens != SupertokenConfig():
            raise ValueError(
                "supertokens.* has no effect without map.regions=supertokens; set that too, or leave it out"
            )
        if self.pretrain.batch % self.cluster.train_workers:
            raise ValueError(
                f"pretrain.batch must be a multiple of cluster.train_workers "
                f"({self.cluster.train_workers}), found {self.pretrain.batch}"
            )
        if (self.cluster.min_train_workers or 1) > self.cluster.train_workers:
            raise ValueError(
                f"cluster.min_train_workers must be at most cluster.train_workers "
                f"({self.cluster.train_workers}), found {self.cluster.min_train_workers}"
            )
        return self

    @property
    def tile(self) -> int:
        """Side of a tile of the map, pixels."""
        stride = self.patches.stride
        usual = max(_TILE, 6 * stride) if self.patches.margin else _TILE
        return self.map.tile or max(1, round(usual / stride)) * stride

    @property
    def reads_features(self) -> bool:
        """Whether the classifier reads diffusion features; if not, no U-Net is trained or run."""
        return CLASSIFIERS[self.classifier.kind].reads_features

    @property
    def patch(self) -> int:
        """Side of the patch of reduced spectra that the classifier reads round each pixel; 0: none."""
        return self.classifier.patch if CLASSIFIERS[self.classifier.kind].reads_patches else 0

    @property
    def spectra(self) -> int:
        """Spectral features of a pixel."""
        return spectra_width(self.reduce.components, *self.features.boxes, self.patch)

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that answer beside the ensemble: those that go with it and have something to read."""
        if self.classifier.kind != "mlp" or self.classifier.vote != "mean":
            return ()
        return tuple(name for name in self.classifier.experts if name != "spectra" or self.spectra)

    def kept_channels(self, classes: int) -> int:
        """Channels that purification keeps of each kind of feature, with so many classes."""
        if not self.reads_features:
            return 0
        return self.purify.count(feature_width(self.unet, self.features.stages, self.patches.side), classes)


def load_config(path: str | Path | None, overrides: Sequence[str] = (), base: Config | None = None) -> Config:
    """Read a YAML file (or take ``base``, or the defaults) and apply ``section.key=value`` overrides.

    Raises:
        UserError: The file is missing or no mapping, a key is unknown, a value has the wrong type,
            or sections do not fit together.
    """
    return make_config(
        merged(base.model_dump(mode="json") if base else {}, read_values(path, overrides)), path
    )


def read_values(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file and ``section.key=value`` overrides set, unchecked.

    Raises:
        UserError: The file is missing or no mapping, or an override is none.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise UserError(f"--config {path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: not valid YAML ({in_yaml(error)})") from None
        if not isinstance(values, dict):
            raise UserError(f"--config {path}: expected sections, found {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return cast(dict[str, Any], values)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of both; a key that both have is that of ``over``."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        result[key] = {**cast(dict[str, Any], below), **value} if both else value
    return result


def make_config(values: Mapping[str, Any], path: str | Path | None = None) -> Config:
    """A checked configuration from its sections; ``path`` says where they were read, for messages.

    Raises:
        UserError: A key is unknown, a value has the wrong type, or sections do not fit together.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        where = "configuration" if path is None else str(path)
        raise UserError(f"{where}: {_explain(error)}") from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected section.key=value")
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {section} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: not valid YAML ({in_yaml(error)})") from None


def _explain(error: ValidationError) -> str:
    """The first complaint of pydantic as one sentence, with the nearest known key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *sections, last = [str(part) for part in first["loc"]]
        known = _known_keys(sections)
        close = difflib.get_close_matches(last, known, n=1)
        hint = (
            f"; did you mean {'.'.join([*sections, close[0]])}?" if close else f"; known: {', '.join(known)}"
        )
        return f"unknown key {key}{hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    if first["type"] == "tuple_type":
        return f"{key}: expected a list such as [{first['input']}], found {first['input']!r}"
    return f"{key}: {message[0].lower()}{message[1:]}, found {first['input']!r}"


def _known_keys(sections: Sequence[str]) -> list[str]:
    model: Any = Config
    for section in sections:
        model = Config.model_fields[section].annotation
    return sorted(getattr(model, "model_fields", None) or model.__dataclass_fields__)
