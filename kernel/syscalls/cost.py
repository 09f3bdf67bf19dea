"""Handlers about costs: what computing took, and whether to load or to compute."""

import math
from typing import Final

from libmem.abi import calls as c
from libmem.abi.costs import PrefillSample
from libmem.abi.errors import Errno, MemError
from libmem.abi.kv import KV_TOKENS_MAX, TOKEN_BYTES, fingerprint
from libmem.abi.names import parse_subtree
from memosd.kernel import pricing
from memosd.kernel.dispatch import Context
from memosd.kernel.events import is_under
from memosd.kernel.pagetable import Cube
from memosd.kernel.recall import spaces_under
from memosd.kernel.wait import detach

__all__ = ["sys_plan_prefix", "sys_report_prefill"]

_SAMPLES_MAX: Final = 64
_ROWS_MAX: Final = 1 << 16
_SECONDS_MAX: Final = 24 * 3600.0
_TOKEN_S_MAX: Final = 60.0
"""A token takes no longer, on any machine that anybody would wait for."""
_MAP_S_MAX: Final = 600.0
_MAPPED_WITHIN_NS: Final = 1_000_000_000
"""Who asks for a plan maps what it says at once: a load that was not begun by then is his own."""


def sys_report_prefill(context: Context, request: c.ReportPrefill) -> c.ReportReply:
    model = fingerprint(request.model)
    if len(request.samples) > _SAMPLES_MAX:
        raise MemError(Errno.EINVAL, f"at most {_SAMPLES_MAX} samples at once")
    costs, uid = context.kernel.parts.costs, context.who.uid
    sound = [sample for sample in request.samples if _is_sound(sample)]
    taken = sound[: costs.allowance(uid, len(sound))]
    for sample in taken:
        costs.report(model, uid, sample)
    return c.ReportReply(taken=len(taken))


def _is_sound(sample: PrefillSample) -> bool:
    """Could it be true?"""
    counts = (0 <= sample.cached_tokens <= KV_TOKENS_MAX) and (1 <= sample.rows <= _ROWS_MAX)
    tokens = sample.rows * sample.tokens
    is_prefill = 0 < sample.tokens <= KV_TOKENS_MAX and (
        0.0 < sample.seconds <= min(_SECONDS_MAX, tokens * _TOKEN_S_MAX)
    )
    is_map = 0.0 < sample.map_s <= _MAP_S_MAX
    is_number = math.isfinite(sample.seconds) and math.isfinite(sample.map_s)
    is_either = is_prefill or is_map
    is_all = (is_prefill or sample.seconds == 0.0) and (is_map or sample.map_s == 0.0)
    return counts and is_number and is_either and is_all


def sys_plan_prefix(context: Context, request: c.PlanPrefix) -> c.PlanReply:
    kernel, parts = context.kernel, context.kernel.parts
    under = parse_subtree(request.under)
    prompt = _prompt(context, request)

    def may_show(cube_id: bytes) -> bool:
        row = kernel.cubes.readable_row(context.who, cube_id)
        return row is not None and is_under(row.name, under)

    spaces = spaces_under(parts, context.who, under)
    match = parts.prefixes.find(spaces, prompt.model, request.tokens, may_show)
    if match is None:
        compute = parts.costs.prefill(prompt.model, prompt.uid, prompt.tokens, 0, prompt.rows)
        return c.PlanReply(
            plan_s=compute.seconds, compute_s=compute.seconds, is_measured=compute.is_measured
        )
    plan = pricing.plan(parts, match, prompt, may_show)
    if request.is_prefetched and plan.wanted is not None:
        # Where that is refused, it is loaded when it is mapped.
        kernel.prefetch.want(context.session, plan.wanted, _MAPPED_WITHIN_NS)
    if request.is_prefetched and plan.probe is not None:
        detach(_bring_in(context, plan.probe))
    return plan.reply


def _prompt(context: Context, request: c.PlanPrefix) -> pricing.Prompt:
    """Errors: EINVAL."""
    model = fingerprint(request.model)
    if len(request.tokens) % TOKEN_BYTES:
        raise MemError(Errno.EINVAL, "token ids are 4 bytes each")
    shared = len(request.tokens) // TOKEN_BYTES
    tokens = max(1, shared, request.prompt_tokens)
    if not (0 <= request.prompt_tokens <= KV_TOKENS_MAX and 1 <= request.rows <= _ROWS_MAX):
        raise MemError(Errno.EINVAL, f"no prompt of {tokens} tokens in {request.rows} rows")
    return pricing.Prompt(model, context.who.uid, tokens, request.rows)


async def _bring_in(context: Context, cube: Cube) -> None:
    """Load what tells how the disk is; nobody waits for it."""
    kernel = context.kernel
    try:
        space = kernel.parts.namespaces.by_id(cube.row.namespace)
        await kernel.pager.bring_in(cube, space)
    except MemError as error:
        kernel.parts.heat.decide(cube.id, "prefetch failed", str(error))
