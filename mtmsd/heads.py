"""The kinds of fusion and of classifier, by the names that a configuration gives them.

Another kind takes a file of its own, beside hyperfeatures.py or ssftt.py, and a line here.
"""

from mtmsd.classifier import ClassifierConfig, Head, Member, Sizes
from mtmsd.features import FeatureConfig
from mtmsd.fusion import Fusion, FusionConfig, SelectiveFusion
from mtmsd.hyperfeatures import Hyperfeatures
from mtmsd.ssftt import DiffusionPatchMember, PatchMember
from mtmsd.windows import PatchConfig

FUSIONS: dict[str, type[Fusion]] = {
    "selective": SelectiveFusion,
    "hyperfeatures": Hyperfeatures,
}

CLASSIFIERS: dict[str, type[Member]] = {
    "mlp": Head,
    "ssftt": PatchMember,
    "diffusion_ssftt": DiffusionPatchMember,
}


def make_member(classifier: ClassifierConfig, fusion: FusionConfig, sizes: Sizes) -> Member:
    """An untrained member of the configured kind; draws from torch's generator."""
    kind = CLASSIFIERS[classifier.kind]
    fused = Fusion()
    if kind.reads_features:
        fused = FUSIONS[fusion.kind](fusion, sizes.timesteps, sizes.stages)
    return kind(classifier, fused, sizes)


def check_parts(
    classifier: ClassifierConfig,
    fusion: FusionConfig,
    features: FeatureConfig,
    patches: PatchConfig,
    components: int,
) -> None:
    """Refuse parts that are unknown or cannot go together.

    Raises:
        ValueError: Which, and why.
    """
    for section, found, known in (
        ("fusion", fusion.kind, FUSIONS), ("classifier", classifier.kind, CLASSIFIERS)
    ):  # fmt: skip
        if found not in known:
            raise ValueError(f"{section}.kind must be one of {', '.join(known)}, found {found}")
    kept, timesteps = fusion.keep_timesteps, len(features.timesteps)
    if kept is not None and not FUSIONS[fusion.kind].weighs_timesteps:
        raise ValueError(
            f"fusion.keep_timesteps needs a fusion that weighs whole timesteps (hyperfeatures), "
            f"found fusion.kind {fusion.kind}"
        )
    if kept is not None and kept > timesteps:
        raise ValueError(
            f"fusion.keep_timesteps must be at most {timesteps}, as many as features.timesteps, found {kept}"
        )
    kind = CLASSIFIERS[classifier.kind]
    if fusion.width != FusionConfig.width and not FUSIONS[fusion.kind].weighs_timesteps:
        raise ValueError(f"fusion.width has no effect with fusion.kind {fusion.kind}; leave it out")
    if classifier.patch != ClassifierConfig.patch and not kind.reads_patches:
        raise ValueError(
            f"classifier.patch has no effect with classifier.kind {classifier.kind}; leave it out"
        )
    if not kind.reads_features and fusion.kind != FusionConfig.kind:
        raise ValueError(
            f"fusion.kind {fusion.kind} has nothing to fuse, for classifier.kind {classifier.kind} reads no "
            f"diffusion features; leave it out, or take another classifier"
        )
    if kind.reads_patches:
        _check_patch(classifier, features, patches, components)


def _check_patch(
    classifier: ClassifierConfig, features: FeatureConfig, patches: PatchConfig, components: int
) -> None:
    if features.spectra:
        raise ValueError(
            f"features.spectra must be [] with classifier.kind {classifier.kind}, which reads the patch "
            f"round each pixel in place of boxes' means, found {list(features.spectra)}"
        )
    halo = patches.wide.after
    if classifier.patch // 2 > halo:
        raise ValueError(
            f"classifier.patch must be at most {2 * halo + 1}, for windows of {patches.side} pixels reach "
            f"{halo} beyond their blocks of {patches.stride} with patches.blend {patches.margin}; "
            f"found {classifier.patch}"
        )
    if components < 3:
        raise ValueError(
            f"reduce.components must be at least 3 with classifier.kind {classifier.kind}, which convolves "
            f"along them, found {components}"
        )
