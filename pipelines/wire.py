"""The versioned messages that both sides of the sandbox speak: JSON text, nothing else.

    host -> guest   activate(input)     one of
        {"v": 1, "op": "describe", "files": {path: text}}
        {"v": 1, "op": "run", "files": {...}, "pipeline": name, "event": {...}, "seed": text,
         "entries": [entry, ...], "strict": bool, "always_hibernate": bool,
         "reuse": digest | null, "value_bytes": n}
        {"v": 1, "op": "fetch", "files": {...}, "reuse": digest | null, "request": {"method",
         "path", "query": [[name, value], ...], "headers": [[name, value], ...],
         "body": base64}}
    guest -> host   the answer of activate(), one of
        {"described": {"pipelines": [...], "fetch": "token" | "public" | null}}
                                                 see Description in ci_platform/model.py
        {"responded": {"status", "headers": [[name, value], ...], "body": base64}}
        {"suspended": true}
        {"returned": value}
        {"raised": error, "limit": name | null, "loading": bool}
        {"mismatch": {"seq": n, "expected": text, "got": text}}
        ... returned and raised with "commands": [finish, ...] that were not sent yet, if any
        ... each with "reusable": true if another activation of equal code may use the interpreter
    guest -> host   next(commands)      [command, ...], one of
        {"op": "start", "key": key, "config": {...}}
        {"op": "finish", "key": key, "attempt": n, "value": value, "early_ms": n (or left out)}
        {"op": "finish", "key": key, "attempt": n, "error": error, "retryable": bool,
         "delay_ms": n | null}
        {"op": "abandon", "key": key}
        {"op": "diverge", "key": key, "change": "inserted" | "missing"}
    host -> guest   the answer of next()
        [entry, ...]     the journal since the last entry the guest knows; [] = suspend now
        {"fatal": text}  the host gave up; unwind nothing, return {"suspended": true}
    guest -> host   log(step, stream, text)
    guest -> host   mode(body, now_ms)  true while a step body runs: real time and entropy; false:
                                        the wall clock stands at now_ms, the run's logical time
    guest -> host   allow(body, ms)     a step's body may run for so long, outside of it it is not
                                        counted; "do:name#2", or "delay:do:name" while the body's
                                        delay function runs
    guest -> host   sleep(ms)           a body waits: hold the guest for so long, off its CPU time

    guest -> host   ask(request)        what code wants of `self.env`, no journal entry; the guest
                                        stands still until it is answered
        {"v": 1, "capability": word, "method": word, "arguments": {...}}
    host -> guest   the answer of ask()
        {"value": value} or {"error": {"type": name, "message": text}}

    Early completion: while all steps that the host knows of are `do` steps whose bodies have
    ended, and their `finish` commands stand before all others that are not sent yet, no other
    completion can come before theirs. So the code goes on with their values at once, and they are
    sent with what it asks for next, or with the answer. `early_ms` is the time on the run's clock
    that it was told: the entry that started the attempt, plus what the body took. The host keeps
    it in step_passed; the clock of a replay then moves to it, and not to the entry's at_ms. A
    body still runs only after the entry that starts its attempt has come, with all before it.

    key    [kind, name, occurrence]
    error  {"type": name, "message": text, "traceback": text, "data": {...}}
    entry  {"seq": n, "kind": word, "at_ms": n, "data": {...}, "key": key | null,
            "attempt": n | null}

Configs of "start", by kind; durations and instants are whole milliseconds:

    A service is declared by its "start" and ended by a "finish" of its only attempt, when the
    code leaves its block. Nothing waits for it in between. Commands name those around them.

    Steps named $rollback:kind:name, of kind do or sh, are the handlers of a rollback. A
    rollback_started entry lists whose handlers run, and in which order.

    do        {"retries": {"limit", "delay_ms" | null, "backoff"}, "timeout_ms", "sensitive",
               "rollback": bool}
    sh        {"script", "env", "secrets", "cwd", "shell", "timeout_ms", "retries": {...},
               "labels", "image", "network", "artifacts", "reports", "cache", "cache_dirs",
               "allow_failure", "rollback": bool; may be left out: "services": ["service:db", ...],
               "on_lost": "retry" | "fail", "git_depth": n}
    service   {"script", "env", "secrets", "cwd", "shell", "network", "timeout_ms", "ready":
               {"port" | "http" | "command" | "log": value} | null}
    sleep     {"duration_ms"} or {"until_ms"}
    wait      {"type", "timeout_ms"}
    approval  {"approvers", "required", "allow_self", "form", "timeout_ms", "environment"}
    run       {"pipeline", "params", "wait"}
    timer     {"duration_ms"}

Values with which the host completes a step (`data.value` of step_passed), by kind:

    do        what the body returned
    sh        {"exit_code", "outputs", "output_tail", "layer", "duration_ms"}
    service   null
    sleep     null
    wait      {"payload", "timestamp": ISO 8601, "type"}
    approval  {"approved": true, "decisions": [{"user", "decision", "comment", "at"}], "form"}
    run       {"id", "number", "state", "output"}
    timer     null

Errors with which the host completes a step (`data.error.type` of step_failed) are CommandFailed
(data: exit_code, output_tail, ended), WaitTimeout, Rejected (data: user, comment), StepFailed
(data: type, message of the last attempt), or the author's own exception type for a `do` body.
"""

from typing import Any, TypeAlias

Json: TypeAlias = Any  # what json.loads returns; the only `Any` inside the sandbox

VERSION = 1
VALUE_BYTES_MAX = 1 << 20  # JSON of a step result, of params and of a run's output
VALUE_DEPTH_MAX = 100  # nesting of such a value
ASK_VERSION = 1
ASK_BYTES_MAX = 2 << 20  # JSON of a request to `self.env`
NAME_MAX = 256  # characters of a step's name
PERIOD_MS_MAX = 365 * 86_400_000  # a sleep, a wait, a timeout
GIT_DEPTH_MAX = 10_000  # generations of commits
RETRIES_MAX = 10_000
SERVICES_MAX = 8  # around one command
TIMER_NAME = "$timer"
ASKING = "delay:"
ROLLBACK_NAME = "$rollback:"  # of handlers: $rollback:do:build undoes do:build
