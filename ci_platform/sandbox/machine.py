"""The configuration of wasmtime: builder and sandbox must agree on how code is compiled."""

from __future__ import annotations

import wasmtime
from wasmtime import _bindings as capi

from ci_platform.model import Json

INSTANCES_MAX = 4  # of one process: it executes one, keeps one, has one ready, and makes one
MEMORY_KEPT_BYTES = 32 << 20  # of an instance that is gone, for the next one
_MEMORIES_MAX = 4  # of one instance; the guest has fewer of each
_MODULES_MAX = 64
_ELEMENTS_MAX = 200_000  # of a table
_STATE_BYTES_MAX = 4 << 20  # what wasmtime itself keeps of an instance


def engine_config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True  # instances can be stopped
    config.memory_init_cow = True  # instances share the guest's memory until they write to it
    config.parallel_compilation = True
    return config


def pooled_config(*, memory_bytes: int) -> wasmtime.Config:
    """For a process that makes one instance after the other. A new interpreter writes to thousands
    of pages, and that each of them has to be faulted in is most of what a start costs. Here the
    pages of the last one are kept, and set back to what the guest's image holds: a start to the
    author's first line takes a third of the time.

    wasmtime-py has no class for this, so the C functions are called, by the bindings it generates.
    """
    config = engine_config()
    pool: Json = capi.wasmtime_pooling_allocation_config_new()
    sizes = {
        "total_component_instances": INSTANCES_MAX,
        "total_core_instances": INSTANCES_MAX * _MODULES_MAX,
        "total_memories": INSTANCES_MAX * _MEMORIES_MAX,
        "total_tables": INSTANCES_MAX * _MODULES_MAX,
        "max_memories_per_component": _MEMORIES_MAX,
        "max_core_instances_per_component": _MODULES_MAX,
        "max_tables_per_component": _MODULES_MAX,
        "table_elements": _ELEMENTS_MAX,
        "max_component_instance_size": _STATE_BYTES_MAX,
        "max_core_instance_size": _STATE_BYTES_MAX,
        "max_memory_size": memory_bytes,
        "linear_memory_keep_resident": MEMORY_KEPT_BYTES,
        "table_keep_resident": MEMORY_KEPT_BYTES,
    }
    for name, size in sizes.items():
        getattr(capi, f"wasmtime_pooling_allocation_config_{name}_set")(pool, size)
    capi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    capi.wasmtime_pooling_allocation_config_delete(pool)
    return config
