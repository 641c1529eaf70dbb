"""The service that Restate calls: served by hypercorn, without anything that isolates its code."""

from __future__ import annotations

import datetime

import restate

bench = restate.Service("bench")
flow = restate.Workflow("flow")


async def one():
    return 1


@bench.handler()
async def three(ctx: restate.Context, number: int) -> int:
    await ctx.run_typed("a", one)
    await ctx.run_typed("b", one)
    await ctx.run_typed("c", one)
    return number


@bench.handler()
async def nap(ctx: restate.Context, seconds: float) -> int:
    await ctx.run_typed("before", one)
    await ctx.sleep(datetime.timedelta(seconds=seconds))
    await ctx.run_typed("after", one)
    return 1


@flow.main()
async def run(ctx: restate.WorkflowContext, number: int) -> int:
    return await ctx.promise("go").value()


@flow.handler()
async def go(ctx: restate.WorkflowSharedContext, number: int) -> int:
    await ctx.promise("go").resolve(number)
    return number


app = restate.app([bench, flow])
