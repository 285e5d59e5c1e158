"""The options of every configuration group: keys, types and ranges.

Each class lists the options of a `_target_`; its keys may be missing, as the target has defaults. Options that depend
on each other are in `contradictions`; options that depend on a checkpoint or on files are checked where these are
read. A `_target_` that is not in `GROUPS` is someone's own and takes any options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from drift.configuration.types import (
    Box,
    Count,
    Few,
    LayerWeights,
    NonNegative,
    Pixel,
    Positive,
    Seed,
    Share,
    Side,
    Text,
    Unique,
    Whole,
    in_words,
)

__all__ = [
    "GROUPS",
    "Adaptation",
    "Configuration",
    "Fit",
    "Gaussian",
    "Learning",
    "Output",
    "Prompted",
    "TextualInversion",
]

_strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_open = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Names = Annotated[
    Sequence[str | int | float],
    Field(min_length=1),
    Unique,
    in_words("a list of names, [a,b], each once"),
]
Layers = Annotated[
    Sequence[Text], Field(min_length=1), Unique, in_words("a list of layers, [a,b], each once")
]
Root = Annotated[Text, in_words("the folder of the data set: data.root=FOLDER")]
MaxSide = Side | None
Batch = Annotated[
    Annotated[int, Field(ge=1, le=1000)] | Literal["auto"], in_words("auto, or a whole number from 1 to 1000")
]


@with_config(_strict)
class Output(TypedDict, total=False):
    """What a run writes."""

    dir: Annotated[Text, in_words("a folder")]
    formats: Annotated[
        Sequence[Literal["masks", "overlay", "cutout_png", "cutout_webm", "coco", "boxes", "contours"]],
        Unique,
        in_words(
            "a list from masks, overlay, cutout_png, cutout_webm, coco, boxes, contours, without duplicates"
        ),
    ]
    resume: bool
    attention: bool
    attention_points: (
        Annotated[
            Sequence[Pixel],
            Field(min_length=1, max_length=8),
            in_words("a list of at most 8 pixels, [[x,y],...]"),
        ]
        | None
    )
    sampled_frames: Whole
    pictured_clips: Whole
    report: bool
    progress: bool
    verbose: bool
    json_logs: bool


@with_config(_strict)
class Page(TypedDict, total=False):
    """The page of `demo.py`."""

    host: Text
    port: Annotated[int, Field(ge=1, le=65535)] | None
    share: bool
    max_side: MaxSide
    max_frames: Count
    max_megabytes: Count
    keep_minutes: NonNegative


@with_config(_open)
class Configuration(TypedDict, total=False):
    """The options that belong to no group, `output` and `page`."""

    seed: Seed
    output: Output
    page: Page


@with_config(_strict)
class Sample(TypedDict, total=False):
    """`data=sample`."""

    root: Text | None
    sequences: Names | None
    max_side: MaxSide


@with_config(_strict)
class DataSet(TypedDict, total=False):
    """Options of all data sets."""

    root: Root
    sequences: Names | None
    max_side: MaxSide
    download: bool


@with_config(_strict)
class Split(DataSet, total=False):
    """Data sets with several splits."""

    split: Text


@with_config(_strict)
class Davis(Split, total=False):
    """`data=davis` and `data=davis2016`."""

    resolution: Text


@with_config(_strict)
class YouTubeVos(Split, total=False):
    """`data=youtube_vos`."""

    all_frames: bool


@with_config(_strict)
class LongVideos(DataSet, total=False):
    """`data=long_videos`."""

    split: Text | None


@with_config(_strict)
class Folder(TypedDict, total=False):
    """`data=folder`."""

    root: Root
    sequences: Names | None
    max_side: MaxSide
    frames_per_second: Annotated[float, Field(ge=0.01, le=1000)]


@with_config(_strict)
class Video(TypedDict, total=False):
    """`data=video`."""

    path: Annotated[Text, in_words("a video file or a folder of frames: data.path=clip.mp4")]
    mask: Text | None
    masks: Annotated[Mapping[Whole, Text], in_words("{FRAME: FILE, ...}, frames from 0 on")] | None
    box: (
        Annotated[
            Box | Sequence[Box],
            in_words("[x0,y0,x1,y1] in pixels with x0 < x1 and y0 < y1, or a list of these"),
        ]
        | None
    )
    points: Annotated[Sequence[Pixel], in_words("[[x,y],...] in pixels")] | None
    labels: (
        Annotated[
            Sequence[Annotated[int, Field(ge=0, le=254)]],
            in_words("a list of object ids from 1 to 254, one for each point, 0 for the background"),
        ]
        | None
    )
    keypoints: Text | None
    frame: Whole
    direction: Literal["forward", "backward", "both"]
    frames_per_second: Annotated[float, Field(ge=0.01, le=1000)]
    max_side: MaxSide


@with_config(_strict)
class NoOptions(TypedDict, total=False):
    """Targets without options."""


@with_config(_strict)
class Gaussian(TypedDict, total=False):
    """`noise=gaussian`."""

    ensemble: Annotated[int, Field(ge=1, le=1000)]


@with_config(_strict)
class LatentInversion(TypedDict, total=False):
    """`noise=inversion`."""

    steps: Count


@with_config(_strict)
class Propagation(TypedDict, total=False):
    """Propagation of labels by a tracker."""

    affinity: Literal["attention", "cosine"]
    heads: Literal["separate", "joint", "fused"]
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)]
    top_k: Count | None
    radius: Whole | None
    follow: bool
    memory_frames: Whole
    given_frames: Count
    long_term_frames: Whole
    long_term_interval: Count
    motion_prior: bool
    detect_cuts: bool
    memory_labels: Literal["soft", "hard"]
    background_weight: Positive
    min_confidence: Share
    seed: Seed


@with_config(_open)
class Backbone(TypedDict, total=False):
    """Families of models have further options, which are checked when the checkpoint is loaded."""

    checkpoint: Annotated[Text, in_words("a folder, a file, a Hub id, or embedded:NAME")]
    revision: Text | None
    config: Text | None
    family: Text | None
    lora: Text | None
    prediction_type: Literal["epsilon", "v_prediction"] | None
    layers: Layers | None
    timestep: Whole
    noise: Any
    prompt: str
    label: Whole | None
    guidance: NonNegative
    precision: Precision
    batch: Batch
    cache: Annotated[Text, in_words("a folder")] | None
    cache_gigabytes: Positive


@with_config(_strict)
class Ensemble(TypedDict, total=False):
    """`backbone=ensemble`. The options of its members are checked when they are loaded."""

    members: Annotated[
        Mapping[Text, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
        Field(min_length=1),
        in_words("{NAME: {checkpoint: ..., ...}, ...}, the options of each member"),
    ]
    precision: Precision
    batch: Batch
    cache: Annotated[Text, in_words("a folder")] | None
    cache_gigabytes: Positive


@with_config(_strict)
class Adaptation(TypedDict, total=False):
    """Test-time optimisation."""

    checkpoints: Annotated[Text, in_words("a folder that train.py wrote")] | None
    seed: Seed
    head_weighting: Any
    textual_inversion: Any


@with_config(_strict)
class Single(TypedDict, total=False):
    """`adaptation/head_weighting=single`."""

    layer: Annotated[Text, in_words("one of backbone.layers")]
    head: Whole | None


@with_config(_strict)
class Fixed(TypedDict, total=False):
    """`adaptation/head_weighting=fixed`."""

    layer_weights: LayerWeights


@with_config(_strict)
class Fit(TypedDict, total=False):
    """When an optimisation ends."""

    learning_rate: Positive
    steps: Count
    patience: Count
    tolerance: NonNegative


@with_config(_strict)
class Learning(Fit, total=False):
    """How head weights are learned."""

    caution: NonNegative
    views: Few


@with_config(_strict)
class Learned(Learning, total=False):
    """`adaptation/head_weighting=learned`."""

    layer_weights: LayerWeights | None


@with_config(_strict)
class TextualInversion(Fit, total=False):
    """`adaptation/textual_inversion=learned`."""

    tokens: Annotated[int, Field(ge=1, le=77)]  # of the prompt
    views: Few
    cross_layers: Layers | None
    self_layer: Text | None
    self_weight: NonNegative
    diffusion_weight: NonNegative
    conditioned: bool
    refresh: Whole
    slot_weight: NonNegative
    slot_interval: Count


@with_config(_strict)
class Gates(TypedDict, total=False):
    """Options of every refinement."""

    min_iou: Share
    max_area_change: Annotated[float, Field(ge=1)]
    trust: Share
    feedback: bool


@with_config(_strict)
class GrabCut(Gates, total=False):
    """`refinement=grabcut`."""

    side: Side
    iterations: Count


@with_config(_strict)
class Prompted(Gates, total=False):
    """Refinement by a model that is prompted."""

    precision: Precision
    box: bool
    margin: NonNegative
    positive_points: Few
    negative_points: Few
    mask: bool
    mask_limit: NonNegative
    score_weight: Share
    seed: Seed


@with_config(_strict)
class SegmentAnything(Prompted, total=False):
    """`refinement=sam` and `refinement=sam_tiny`."""

    checkpoint: Annotated[Text, in_words("a file, or embedded:sam_tiny")]
    size: Literal["vit_b", "vit_l", "vit_h", "tiny"] | None
    download: bool


@with_config(_strict)
class TransformersSam(Prompted, total=False):
    """`refinement=sam_hq`, `refinement=sam2` and `refinement=edgetam`."""

    family: Literal["sam_hq", "sam2", "edgetam"]
    checkpoint: Annotated[Text, in_words("a folder or a Hub id")]
    revision: Text | None


@with_config(_open)
class Trainer(TypedDict, total=False):
    """Lightning's trainer has further options."""

    accelerator: Text
    devices: Annotated[
        Annotated[int, Field(ge=1)] | Literal[-1] | Text | Annotated[Sequence[Whole], Field(min_length=1)],
        in_words("a whole number, 1 or more; -1 or auto for all; or a list of device numbers"),
    ]
    strategy: Text
    num_nodes: Count
    precision: Annotated[
        Literal["32-true", "16-true", "bf16-true", "64-true", "16-mixed", "bf16-mixed"]
        | Literal["32", "16", "bf16", "64", "transformer-engine", "transformer-engine-float16"]
        | Literal[32, 16, 64],
        in_words("32-true, 16-mixed, bf16-mixed, or another precision of Lightning's trainer"),
    ]
    logger: bool
    enable_progress_bar: bool
    enable_model_summary: bool
    enable_checkpointing: bool
    inference_mode: bool
    use_distributed_sampler: bool


@with_config(_strict)
class Wandb(TypedDict, total=False):
    """`logger=wandb`."""

    project: Text
    name: Text | None
    save_dir: Annotated[Text, in_words("a folder")]
    mode: Literal["auto", "online", "offline"]


@with_config(_open)
class CsvLogger(TypedDict, total=False):
    """Lightning's logger has further options."""

    save_dir: Annotated[Text, in_words("a folder")]
    name: str | None
    version: str | Whole | None


GROUPS: dict[str, dict[str, Any]] = {
    "data": {
        "datamodules.davis.Davis2016": Davis,
        "datamodules.davis.Davis2017": Davis,
        "datamodules.folder.Folder": Folder,
        "datamodules.long_videos.LongVideos": LongVideos,
        "datamodules.mose.Mose": Split,
        "datamodules.sample.Sample": Sample,
        "datamodules.video.Video": Video,
        "datamodules.youtube_vos.YouTubeVos": YouTubeVos,
    },
    "noise": {
        "drift.noising.LatentInversion": LatentInversion,
        "drift.noising.Gaussian": Gaussian,
        "drift.noising.NoNoise": NoOptions,
    },
    "propagation": {"drift.propagation.Tracker": Propagation},
    "backbone": {"drift.backbones.load_backbone": Backbone, "drift.backbones.load_ensemble": Ensemble},
    "adaptation": {"drift.adaptation.Adaptation": Adaptation},
    "adaptation.head_weighting": {
        "drift.adaptation.Fixed": Fixed,
        "drift.adaptation.Learned": Learned,
        "drift.adaptation.Single": Single,
        "drift.adaptation.Uniform": NoOptions,
    },
    "adaptation.textual_inversion": {
        "drift.adaptation.PromptOptions": TextualInversion,
        "drift.adaptation.no_textual_inversion": NoOptions,
    },
    "refinement": {
        "drift.refinement.grabcut_refiner": GrabCut,
        "drift.refinement.load_refiner": SegmentAnything,
        "drift.refinement.load_transformers_refiner": TransformersSam,
        "drift.refinement.no_refiner": NoOptions,
    },
    "trainer": {"lightning.Trainer": Trainer},
    "logger": {
        "lightning.pytorch.loggers.CSVLogger": CsvLogger,
        "drift.reporting.loggers.no_logger": NoOptions,
        "drift.reporting.loggers.wandb_logger": Wandb,
    },
}
"""The options of each group, by its `_target_`."""
