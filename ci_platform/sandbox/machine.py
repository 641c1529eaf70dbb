"""The one configuration of wasmtime: builder and sandbox must agree on it."""

from __future__ import annotations

import wasmtime


def engine_config() -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True  # stops code that never returns
    config.memory_init_cow = True  # instances share the guest's memory until they write to it
    config.parallel_compilation = True
    return config
