"""Refinement of propagated masks by Segment Anything or GrabCut; needs neither Lightning nor Hydra."""

from drift.refinement.factories import grabcut_refiner, load_refiner, load_transformers_refiner, no_refiner
from drift.refinement.refinement import Refinement

__all__ = ["Refinement", "grabcut_refiner", "load_refiner", "load_transformers_refiner", "no_refiner"]
