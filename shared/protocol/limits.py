"""Bounds on everything that comes from outside, each with its reason."""

PROTOCOL_VERSION = 1

MAX_BODY_BYTES = (
    1 << 20
)  # one request; far above any prompt that fits a context of 128k tokens in text
MAX_MESSAGES = 1_024
MAX_PROMPT_TOKENS = 1 << 20  # ids given directly; the model's own context is checked by the target
MAX_CHOICES = 8  # `n`: each choice holds its own KV blocks
MAX_TOKENS_CAP = 1 << 20
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256  # bounds the text that must be held back before it is shown
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 300  # the limit of the OpenAI API
MAX_ABS_LOGIT_BIAS = 100.0
MAX_ID_CHARS = 128  # job ids, tenants and idempotency keys: they become part of Redis keys
MAX_TOP_K = 1 << 20
MAX_SPECULATIVE_TOKENS = 16  # K: verify rows a session may use in one round

MAX_PATH_TOKENS = (
    64  # one draft path; a longer one is cut, never refused: its head may still be right
)
MAX_PATHS_PER_BATCH = 1_024
MAX_TREE_TOKENS = 512  # live guesses kept for one session; the oldest branch goes first
INBOX_MAXLEN = (
    4_096  # entries; soft state, so a reader that is slower than this loses guesses, not tokens
)
FEED_MAXLEN = 16_384  # entries; a gateway that falls behind reads the log instead
DRAFTS_MAXLEN = 4_096  # waiting draft requests; older ones belong to sessions that went on without
DEAD_MAXLEN = 10_000
DEAD_BODY_BYTES = 16_384  # of a dead job's body, kept for the operator
INBOX_TTL_S = 300  # of an inbox or feed that nobody reads: its process is gone
MAX_FOLLOWERS = 4  # gateways that get copies of one job's records; others read its log
DRAFT_REQUEST_TTL_S = 30.0  # an older draft request belongs to a session that went on without

LEASE_S = 4.0  # a worker without a heartbeat for this long loses its jobs
HEARTBEAT_INTERVAL_S = 1.0
MAX_DELIVERIES = 3  # then the job is set aside: it has probably killed its workers
LOG_TTL_S = 3_600  # how long a finished stream can be read again
JOB_TTL_S = 86_400  # how long an unfinished job's keys outlive their last change
