"""EoRA: low-rank matrices beside quantised linears that make up for the error on a text, without training.

Source: EoRA (2410.21271), section 3.2. The published code weights calibration samples by a running decay; here every
token counts alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from threading import Event

import torch

from analysis.model.modules import weight_of
from analysis.model.runner import Runner
from analysis.text import Windows
from surgery.calibration.sweep import Sweep, linear_paths
from surgery.common.progress import Report, silent
from surgery.structure.structure import BlockSpec, LowRank, Structure


def low_rank(missing: torch.Tensor, covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of a rank whose product makes up best for a weight's error, measured on its inputs.

    The paper takes, with C = Q diag(l) Q^T, the truncated SVD U_r S_r V_r^T of dW Q sqrt(l) and projects it back by
    1 / sqrt(l) Q^T. As U_r U_r^T projects dW Q sqrt(l) onto it, that is U_r (U_r^T dW), with U_r the first eigenvectors
    of dW C dW^T: the minimum over rank-r B A of tr((dW - B A) C (dW - B A)^T), without dividing by anything. Where no
    input ever was, the paper's pseudo-inverse gives nothing, and this the same projection of dW.

    Args:
        missing: dW, the wanted weight minus the stored one, (outputs, inputs).
        covariance: C, the sum or mean of x x^T over tokens, (inputs, inputs).
        rank: at least 1; less comes back where the matrix has fewer rows or columns.

    Returns:
        up (outputs, rank), of orthonormal columns, and down (rank, inputs), float64.
    """
    basis, core = torch.linalg.qr(missing.double())  # the eigenvectors lie in the span of dW: no larger than it need be
    _, vectors = torch.linalg.eigh(core @ covariance.double() @ core.T)
    first = vectors[:, -rank:].flip(1)
    return basis @ first, first.T @ core


@torch.no_grad()
def repair(
    runner: Runner, structure: Structure, windows: Windows, report: Report = silent, stop: Event | None = None
) -> Structure:
    """Compute the repair of a structure: blocks with codecs get `repair`, and `eora` is done with.

    Its compensations and quantisation are computed. Each linear's covariance is over what it reads in the quantised
    block, behind blocks that are repaired already.
    """
    edit = structure.eora
    if edit is None:
        return structure
    if structure.compensations or structure.quantize:
        raise ValueError("the structure's compensations or quantisation have not been computed")
    sweep = Sweep(runner, structure, windows.ids, report, stop, "Repairing")
    blocks = sweep.rework(lambda spec: _repaired(sweep, spec, edit.rank))
    report(1.0, "Repaired")
    return replace(structure, blocks=blocks, eora=None)


def _repaired(sweep: Sweep, spec: BlockSpec, rank: int) -> BlockSpec:
    """A block with the repair of all its quantised linears."""
    if not spec.codecs:
        return spec
    codecs = dict(spec.codecs)
    stages = [[path for path in stage if path in codecs] for stage in linear_paths(sweep.block(spec), spec)]
    stages = [stage for stage in stages if stage]
    covariances = sweep.covariances(replace(spec, repair=None), [stage[0] for stage in stages])
    floating = sweep.module(replace(spec, codecs=(), repair=None))
    up: dict[str, torch.Tensor] = {}
    down: dict[str, torch.Tensor] = {}
    for stage in stages:
        seen = covariances[stage[0]]
        for path in stage:
            sweep.check()
            weight = weight_of(floating.get_submodule(path))
            missing = (weight.double() - codecs[path].apply(weight).double()).cpu()
            made = low_rank(missing, seen.total / max(seen.tokens, 1), rank)
            up[path], down[path] = (part.float().contiguous() for part in made)
    return replace(spec, repair=LowRank(_key(up, down), down, up))


def _key(up: dict[str, torch.Tensor], down: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for path in sorted(up):
        digest.update(path.encode())
        for part in (up[path], down[path]):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()[:16]
