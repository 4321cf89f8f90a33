-- The rules of the bus, run by the server, so that no worker can break them however late or wrong it is.
-- One library, `outrider`, of the files common, jobs, log and mail, in this order (shared/bus/library.py).
-- docs/protocol.md is the contract; shared/protocol/limits.py holds the same constants (a test compares).
-- Needs Redis 7.0 or Valkey 7.2 on one node: a call touches a job's keys, its jobs stream and gateways' feeds.
--
-- Every function may be called again with the same arguments after a lost reply: the answer is as good as the
-- first one and nothing happens twice. Seeds stay strings: a Lua number holds 53 bits.

local LIBRARY_VERSION = 1
local PROTOCOL_VERSION = '1'
local GROUP = 'target'
local MAX_DELIVERIES = 3
local LEASE_S = 4
local LOG_TTL_S = 3600
local JOB_TTL_S = 86400
local FEED_MAXLEN = 16384
local INBOX_MAXLEN = 4096
local INBOX_TTL_S = 300
local DEAD_MAXLEN = 10000
local DEAD_BODY_BYTES = 16384
local MAX_FOLLOWERS = 4

-- shared.protocol.jobs.TRANSITIONS; '' is a job that nobody has claimed.
local TRANSITIONS = {
  [''] = { claimed = 'running', failed = 'failed' },
  running = {
    claimed = 'running', committed = 'running', released = 'running', done = 'done', failed = 'failed',
  },
}

local function next_state(state, event)
  return (TRANSITIONS[state or ''] or {})[event]
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] .. string.format('%03d', math.floor(time[2] / 1000))
end

-- `name value name value ...` from args[first] on, as a table.
local function named(args, first)
  local fields = {}
  for i = first, #args - 1, 2 do
    fields[args[i]] = args[i + 1]
  end
  return fields
end

local function is_alive(prefix, worker)
  return redis.call('EXISTS', prefix .. 'worker:' .. worker) == 1
end

-- Anyone may have written to these names; a key of another type cannot hold a job.
local function is_usable(job, log)
  local job_type, log_type = redis.call('TYPE', job).ok, redis.call('TYPE', log).ok
  return (job_type == 'none' or job_type == 'hash') and (log_type == 'none' or log_type == 'stream')
end

-- Put one batch into an inbox, which goes away by itself when nobody reads it any more.
local function put(inbox, batch)
  redis.call('XADD', inbox, 'MAXLEN', '~', INBOX_MAXLEN, '*', 'm', batch)
  if redis.call('XLEN', inbox) == 1 then
    redis.call('EXPIRE', inbox, INBOX_TTL_S)
  end
end

-- Append one record to a job's log and copy it to the feeds of the gateways that follow. Whoever reads a feed
-- keeps it from expiring; that it does expire is seen to once a job, with its last record.
local function publish(log, prefix, id, gateways, fields, is_last)
  local entry = redis.call('XADD', log, '*', unpack(fields))
  for gateway in string.gmatch(gateways or '', '[^,]+') do
    local copy = { unpack(fields) }
    copy[#copy + 1] = 'id'
    copy[#copy + 1] = id
    copy[#copy + 1] = 'entry'
    copy[#copy + 1] = entry
    local feed = prefix .. gateway
    redis.call('XADD', feed, 'MAXLEN', '~', FEED_MAXLEN, '*', unpack(copy))
    if is_last and redis.call('TTL', feed) < 0 then
      redis.call('EXPIRE', feed, INBOX_TTL_S)
    end
  end
end

-- After a terminal record: the job ends, its entry is acked, its keys get their time to live.
local function finish(job, log, state, digest, stream, entry)
  redis.call('HSET', job, 'state', state, 'owner', '', 'last', digest, 'ended_ms', now_ms())
  if stream and entry then
    redis.call('XACK', stream, GROUP, entry)
  end
  redis.call('EXPIRE', job, LOG_TTL_S)
  redis.call('EXPIRE', log, LOG_TTL_S)
end
