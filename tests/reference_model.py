"""The naive fp32 transformer that judges our decoder; `edgekv bench fidelity` uses the same one."""

from edgekv.bench.reference import ReferenceModel

__all__ = ["ReferenceModel"]
