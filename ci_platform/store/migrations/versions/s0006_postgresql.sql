CREATE TABLE audit (
    n BIGSERIAL NOT NULL,
    at_ms BIGINT NOT NULL,
    actor VARCHAR NOT NULL,
    action VARCHAR NOT NULL,
    subject VARCHAR NOT NULL,
    detail BYTEA NOT NULL,
    PRIMARY KEY (n)
);

CREATE TABLE descriptions (
    n BIGSERIAL NOT NULL,
    digest VARCHAR NOT NULL,
    description BYTEA NOT NULL,
    PRIMARY KEY (n),
    UNIQUE (digest)
);

CREATE TABLE duties (
    name VARCHAR COLLATE "C" NOT NULL,
    next_ms BIGINT NOT NULL,
    PRIMARY KEY (name)
);

CREATE TABLE hooks (
    id VARCHAR COLLATE "C" NOT NULL,
    repository_id VARCHAR COLLATE "C" NOT NULL,
    provider VARCHAR NOT NULL,
    secret BYTEA NOT NULL,
    remote_url VARCHAR,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_hooks_repository_id ON hooks (repository_id);

CREATE TABLE links (
    purpose VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    expires_ms BIGINT NOT NULL,
    PRIMARY KEY (purpose),
    UNIQUE (digest)
);

CREATE TABLE run_counters (
    repository_id VARCHAR COLLATE "C" NOT NULL,
    last_number BIGINT NOT NULL,
    PRIMARY KEY (repository_id)
);

CREATE TABLE runs (
    n BIGSERIAL NOT NULL,
    id VARCHAR COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    repository_id VARCHAR COLLATE "C" NOT NULL,
    pipeline VARCHAR NOT NULL,
    ref VARCHAR NOT NULL,
    commit VARCHAR NOT NULL,
    resume VARCHAR NOT NULL,
    trigger VARCHAR NOT NULL,
    actor VARCHAR NOT NULL,
    actor_id VARCHAR,
    trusted BOOLEAN NOT NULL,
    created_ms BIGINT NOT NULL,
    timeout_ms BIGINT,
    state VARCHAR NOT NULL,
    reason VARCHAR,
    last_seq INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    worker VARCHAR,
    lease_until_ms BIGINT,
    ready_ms BIGINT,
    waits BYTEA,
    started_ms BIGINT,
    ended_ms BIGINT,
    output BYTEA,
    error BYTEA,
    pause_requested BOOLEAN NOT NULL,
    cancel_requested BOOLEAN NOT NULL,
    group_key VARCHAR,
    group_limit INTEGER NOT NULL,
    on_new VARCHAR NOT NULL,
    priority INTEGER NOT NULL,
    hold VARCHAR,
    slot INTEGER,
    PRIMARY KEY (n),
    CONSTRAINT run_state CHECK (state IN ('queued', 'running', 'waiting', 'paused', 'passed', 'failed', 'errored', 'cancelled')),
    UNIQUE (repository_id, number),
    UNIQUE (id)
);

CREATE INDEX runs_by_state ON runs (state, n);

CREATE INDEX runs_due ON runs (ready_ms, n) WHERE ready_ms IS NOT NULL;

CREATE INDEX runs_due_of ON runs (repository_id, ready_ms, n) WHERE ready_ms IS NOT NULL;

CREATE INDEX runs_grouped ON runs (repository_id, group_key, hold, priority DESC, n) WHERE group_key IS NOT NULL AND ended_ms IS NULL;

CREATE INDEX runs_leased ON runs (worker) WHERE worker IS NOT NULL;

CREATE INDEX runs_over ON runs (repository_id, priority DESC, n) WHERE hold = 'limit';

CREATE INDEX runs_slots ON runs (repository_id, ready_ms) WHERE slot IS NOT NULL;

CREATE INDEX runs_urgent ON runs (repository_id, priority DESC, ready_ms, n) WHERE ready_ms IS NOT NULL AND priority > 0;

CREATE TABLE schedules (
    repository_id VARCHAR COLLATE "C" NOT NULL,
    pipeline VARCHAR NOT NULL,
    cron VARCHAR NOT NULL,
    timezone VARCHAR NOT NULL,
    next_ms BIGINT NOT NULL,
    PRIMARY KEY (repository_id, pipeline, cron, timezone)
);

CREATE INDEX schedules_due ON schedules (next_ms);

CREATE TABLE shelves (
    repository_id VARCHAR COLLATE "C" NOT NULL,
    name VARCHAR COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    object VARCHAR NOT NULL,
    PRIMARY KEY (repository_id, name)
);

CREATE TABLE users (
    id VARCHAR COLLATE "C" NOT NULL,
    name VARCHAR NOT NULL,
    password_hash VARCHAR,
    admin BOOLEAN NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE workers (
    id VARCHAR COLLATE "C" NOT NULL,
    host VARCHAR NOT NULL,
    pid BIGINT NOT NULL,
    started_ms BIGINT NOT NULL,
    seen_ms BIGINT NOT NULL,
    beat_ms BIGINT NOT NULL,
    labels BYTEA NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE approvals (
    run_n BIGINT NOT NULL,
    step_kind VARCHAR NOT NULL,
    step_name VARCHAR NOT NULL,
    occurrence INTEGER NOT NULL,
    repository_id VARCHAR COLLATE "C" NOT NULL,
    spec BYTEA NOT NULL,
    opened_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    outcome VARCHAR,
    closed_ms BIGINT,
    PRIMARY KEY (run_n, step_kind, step_name, occurrence),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE INDEX approvals_open ON approvals (opened_ms) WHERE outcome IS NULL;

CREATE INDEX approvals_open_of ON approvals (repository_id, opened_ms) WHERE outcome IS NULL;

CREATE TABLE decisions (
    run_n BIGINT NOT NULL,
    step_kind VARCHAR NOT NULL,
    step_name VARCHAR NOT NULL,
    occurrence INTEGER NOT NULL,
    user_id VARCHAR NOT NULL,
    "user" VARCHAR NOT NULL,
    decision VARCHAR NOT NULL,
    comment TEXT NOT NULL,
    way VARCHAR NOT NULL,
    form BYTEA NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (run_n, step_kind, step_name, occurrence, user_id),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE entries (
    run_n BIGINT NOT NULL,
    seq INTEGER NOT NULL,
    kind VARCHAR NOT NULL,
    at_ms BIGINT NOT NULL,
    data BYTEA,
    step_kind VARCHAR,
    step_name VARCHAR,
    occurrence INTEGER,
    attempt INTEGER,
    PRIMARY KEY (run_n, seq),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE family (
    child_n BIGINT NOT NULL,
    parent_n BIGINT NOT NULL,
    step VARCHAR NOT NULL,
    waits BOOLEAN NOT NULL,
    depth INTEGER NOT NULL,
    due INTEGER NOT NULL,
    PRIMARY KEY (child_n),
    FOREIGN KEY(child_n) REFERENCES runs (n) ON DELETE CASCADE,
    FOREIGN KEY(parent_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE INDEX family_due ON family (child_n) WHERE due > 0;

CREATE INDEX family_of_parent ON family (parent_n);

CREATE TABLE hook_deliveries (
    hook_id VARCHAR COLLATE "C" NOT NULL,
    id VARCHAR NOT NULL,
    event VARCHAR NOT NULL,
    body BYTEA,
    received_ms BIGINT NOT NULL,
    due_ms BIGINT,
    tries INTEGER NOT NULL,
    outcome VARCHAR,
    PRIMARY KEY (hook_id, id),
    FOREIGN KEY(hook_id) REFERENCES hooks (id) ON DELETE CASCADE
);

CREATE INDEX deliveries_due ON hook_deliveries (due_ms) WHERE due_ms IS NOT NULL;

CREATE INDEX deliveries_received ON hook_deliveries (received_ms);

CREATE TABLE log_chunks (
    run_n BIGINT NOT NULL,
    step VARCHAR NOT NULL,
    first BIGINT NOT NULL,
    last BIGINT NOT NULL,
    size INTEGER NOT NULL,
    lines BYTEA NOT NULL,
    PRIMARY KEY (run_n, step, first),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE logs (
    run_n BIGINT NOT NULL,
    step VARCHAR NOT NULL,
    last BIGINT NOT NULL,
    PRIMARY KEY (run_n, step),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE memos (
    repository_id VARCHAR COLLATE "C" NOT NULL,
    scope VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    run_n BIGINT NOT NULL,
    step VARCHAR NOT NULL,
    result BYTEA NOT NULL,
    PRIMARY KEY (repository_id, scope, key),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE INDEX memos_of_run ON memos (run_n);

CREATE TABLE operations (
    n BIGSERIAL NOT NULL,
    id VARCHAR COLLATE "C" NOT NULL,
    run_n BIGINT NOT NULL,
    run_id VARCHAR NOT NULL,
    repository_id VARCHAR COLLATE "C" NOT NULL,
    step_kind VARCHAR NOT NULL,
    step_name VARCHAR NOT NULL,
    occurrence INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    spec BYTEA NOT NULL,
    state VARCHAR NOT NULL,
    fence INTEGER NOT NULL,
    worker VARCHAR,
    lease_until_ms BIGINT,
    ready_ms BIGINT NOT NULL,
    due_ms BIGINT,
    stop BOOLEAN NOT NULL,
    PRIMARY KEY (n),
    CONSTRAINT operation_state CHECK (state IN ('queued', 'running', 'done')),
    UNIQUE (id),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE INDEX operations_due ON operations (due_ms, n) WHERE due_ms IS NOT NULL;

CREATE INDEX operations_due_of ON operations (repository_id, due_ms, n) WHERE due_ms IS NOT NULL;

CREATE INDEX operations_leased ON operations (worker) WHERE worker IS NOT NULL;

CREATE INDEX operations_of_run ON operations (run_n);

CREATE TABLE roles (
    user_id VARCHAR COLLATE "C" NOT NULL,
    repository_id VARCHAR COLLATE "C" NOT NULL,
    role VARCHAR NOT NULL,
    PRIMARY KEY (user_id, repository_id),
    FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE TABLE run_inputs (
    run_n BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    event BYTEA NOT NULL,
    PRIMARY KEY (run_n),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE run_layers (
    digest VARCHAR COLLATE "C" NOT NULL,
    run_n BIGINT NOT NULL,
    PRIMARY KEY (digest, run_n),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE INDEX run_layers_of_run ON run_layers (run_n);

CREATE TABLE sealed_logs (
    run_n BIGINT NOT NULL,
    step VARCHAR NOT NULL,
    digest VARCHAR NOT NULL,
    last BIGINT NOT NULL,
    index_at BIGINT NOT NULL,
    size BIGINT NOT NULL,
    PRIMARY KEY (run_n, step),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE supersessions (
    run_n BIGINT NOT NULL,
    PRIMARY KEY (run_n),
    FOREIGN KEY(run_n) REFERENCES runs (n) ON DELETE CASCADE
);

CREATE TABLE tokens (
    id VARCHAR COLLATE "C" NOT NULL,
    digest VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    user_id VARCHAR COLLATE "C",
    scopes BYTEA NOT NULL,
    repository_id VARCHAR,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    last_used_ms BIGINT,
    PRIMARY KEY (id),
    UNIQUE (digest),
    FOREIGN KEY(user_id) REFERENCES users (id) ON DELETE CASCADE
);

CREATE INDEX ix_tokens_user_id ON tokens (user_id);

CREATE TABLE git_packs (
    id VARCHAR NOT NULL,
    checksum VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    objects INTEGER NOT NULL,
    roots BYTEA,
    data BYTEA,
    created_ms BIGINT NOT NULL,
    released_ms BIGINT,
    PRIMARY KEY (id)
);

CREATE TABLE git_push_events (
    id VARCHAR NOT NULL,
    repository_id VARCHAR NOT NULL,
    pusher_id VARCHAR,
    pusher_name VARCHAR NOT NULL,
    changes JSON NOT NULL,
    options JSON NOT NULL,
    at_ms BIGINT NOT NULL,
    handled_ms BIGINT,
    PRIMARY KEY (id)
);

CREATE INDEX git_push_events_by_repository ON git_push_events (repository_id);

CREATE INDEX git_push_events_pending ON git_push_events (id) WHERE handled_ms IS NULL;

CREATE TABLE git_refs (
    repository_id VARCHAR NOT NULL,
    name VARCHAR COLLATE "C" NOT NULL,
    sha VARCHAR NOT NULL,
    peeled VARCHAR,
    PRIMARY KEY (repository_id, name)
);

CREATE TABLE git_repositories (
    id VARCHAR NOT NULL,
    full_name VARCHAR COLLATE "C" NOT NULL,
    owner VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    default_branch VARCHAR NOT NULL,
    description VARCHAR NOT NULL,
    created_ms BIGINT NOT NULL,
    pack_bytes BIGINT NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (full_name)
);

CREATE TABLE git_repository_packs (
    repository_id VARCHAR NOT NULL,
    pack_id VARCHAR NOT NULL,
    PRIMARY KEY (repository_id, pack_id)
);

CREATE INDEX git_repository_packs_by_pack ON git_repository_packs (pack_id);
