-- Jobs: queued, fetched, claimed, handed back, taken over, set aside.

-- What a job remembers of its entry, so that it can be queued again.
local ENTRY_FIELDS = { 'body', 'tenant', 'reply', 'deadline_ms', 'traceparent' }

local function remember_entry(job, fields)
  for _, name in ipairs(ENTRY_FIELDS) do
    if fields[name] then
      redis.call('HSET', job, name, fields[name])
    end
  end
  if fields.reply then
    redis.call('HSETNX', job, 'follow', fields.reply)
  end
end

-- Where the group stands in a stream. Created when missing, from 0: what was queued before counts.
local function group_cursor(stream)
  for _, row in ipairs(redis.call('EXISTS', stream) == 1 and redis.call('XINFO', 'GROUPS', stream) or {}) do
    local group = named(row, 1)
    if group.name == GROUP then
      return group['last-delivered-id']
    end
  end
  redis.call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
  return '0-0'
end

local function set_aside(dead, id, stream, entry, worker, reason, body, body_bytes)
  redis.call('XADD', dead, 'MAXLEN', '~', DEAD_MAXLEN, '*', 'v', PROTOCOL_VERSION, 'id', id, 'stream', stream,
    'entry', entry, 'worker', worker, 'reason', reason, 'body', string.sub(body, 1, DEAD_BODY_BYTES),
    'body_bytes', body_bytes)
end

-- Submit. keys: job, stream. args: the entry's flat fields.
-- Answers the entry's id and how: created, repeated (known, same body) or conflict (known, another body).
local function open(keys, args)
  local job, stream = keys[1], keys[2]
  local fields = named(args, 1)
  local known = redis.call('HMGET', job, 'entry', 'body')
  if known[1] then
    return { known[1], known[2] == fields.body and 'repeated' or 'conflict' }
  end
  local entry = redis.call('XADD', stream, '*', unpack(args))
  redis.call('HSET', job, 'stream', stream, 'entry', entry, 'opened_ms', now_ms())
  remember_entry(job, fields)
  redis.call('EXPIRE', job, JOB_TTL_S)
  return { entry, 'created' }
end

-- Take undelivered entries, most urgent stream first. keys: the jobs streams. args: prefix, worker, count.
-- Answers whether the worker has a heartbeat (without one it gets nothing: others would take it away at
-- once), {stream, entries} pairs, and where the group stood in each stream, to wait from.
local function fetch(keys, args)
  local prefix, worker, room = args[1], args[2], tonumber(args[3])
  local delivered, cursors = {}, {}
  local alive = is_alive(prefix, worker)
  for i, stream in ipairs(keys) do
    cursors[i] = group_cursor(stream)
    if alive and room > 0 then
      local read = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', room, 'STREAMS', stream, '>')
      if read and read[1] then
        delivered[#delivered + 1] = { stream, read[1][2] }
        room = room - #read[1][2]
      end
    end
  end
  return { alive and 1 or 0, delivered, cursors }
end

-- What a claim answers: epoch, seed, cancel flag, deliveries, then the length of each choice.
local function claimed(job)
  local now = redis.call('HMGET', job, 'epoch', 'seed', 'cancel', 'deliveries', 'choices')
  local answer = { 'claimed', now[1], now[2], now[3] == '1' and '1' or '0', now[4] }
  for choice = 0, tonumber(now[5]) - 1 do
    answer[#answer + 1] = redis.call('HGET', job, 'len:' .. choice) or '0'
  end
  return answer
end

-- Own a job. keys: job, log, dead. args: prefix, id, stream, entry, worker, nonce, seed, choices, entry fields.
-- Answers claimed (see above), or why not: lost (pending at another worker by now), duplicate, finished,
-- buried (all three acked here), or unusable (its keys hold something else).
local function claim(keys, args)
  local job, log, dead = keys[1], keys[2], keys[3]
  local prefix, id, stream, entry, worker, nonce = unpack(args, 1, 6)
  if not is_usable(job, log) then
    return { 'unusable' }
  end
  local state, job_entry, job_stream, owner, last_nonce, epoch, deliveries = unpack(redis.call('HMGET', job,
    'state', 'entry', 'stream', 'owner', 'nonce', 'epoch', 'deliveries'))
  if state == 'running' and owner == worker and last_nonce == nonce then
    return claimed(job) -- the answer was lost on its way
  end
  local pending = redis.pcall('XPENDING', stream, GROUP, entry, entry, 1, worker)
  if pending.err or #pending == 0 then -- without the group nothing is pending
    return { 'lost' }
  end
  if job_entry and (job_entry ~= entry or job_stream ~= stream) then
    redis.call('XACK', stream, GROUP, entry)
    return { 'duplicate' }
  end
  local next = next_state(state, 'claimed')
  if not next then
    redis.call('XACK', stream, GROUP, entry)
    return { 'finished' }
  end
  local fields = named(args, 9)
  if not job_entry then
    remember_entry(job, fields)
  end
  deliveries = (tonumber(deliveries) or 0) + 1
  if deliveries > MAX_DELIVERIES then
    set_aside(dead, id, stream, entry, worker, 'too_many_deliveries', fields.body, #fields.body)
    publish(log, prefix, id, redis.call('HGET', job, 'follow'), {
      'v', PROTOCOL_VERSION, 'ev', 'error', 'code', 'too_many_deliveries', 'message',
      'every worker that took this job went away before it was finished', 'status', '500',
    }, true)
    finish(job, log, next_state(next, 'failed'), '', stream, entry)
    return { 'buried' }
  end
  redis.call('HSETNX', job, 'seed', args[7])
  redis.call('HSETNX', job, 'choices', args[8])
  redis.call('HSET', job, 'state', next, 'owner', worker, 'nonce', nonce, 'stream', stream, 'entry', entry,
    'epoch', string.format('%d', (tonumber(epoch) or 0) + 1), 'deliveries', deliveries, 'claimed_ms', now_ms())
  redis.call('EXPIRE', job, JOB_TTL_S)
  redis.call('EXPIRE', log, JOB_TTL_S)
  return claimed(job)
end

-- Hand a job back. keys: job, stream to queue it in. args: id, epoch.
-- A new entry wakes a waiting worker at once; the old one is acked; the delivery is not counted; the epoch
-- moves on, so that what the old owner still sends is refused.
local function release(keys, args)
  local job, stream = keys[1], keys[2]
  local state, epoch, old_stream, old_entry, deliveries = unpack(redis.call('HMGET', job,
    'state', 'epoch', 'stream', 'entry', 'deliveries'))
  local next = next_state(state, 'released')
  if not next then
    return 'gone'
  end
  if epoch ~= args[2] then
    return 'fenced'
  end
  local fields = { 'v', PROTOCOL_VERSION, 'id', args[1] }
  local values = redis.call('HMGET', job, unpack(ENTRY_FIELDS))
  for i, name in ipairs(ENTRY_FIELDS) do
    if values[i] then
      fields[#fields + 1] = name
      fields[#fields + 1] = values[i]
    end
  end
  local entry = redis.call('XADD', stream, '*', unpack(fields))
  redis.call('XACK', old_stream, GROUP, old_entry)
  redis.call('HSET', job, 'state', next, 'owner', '', 'stream', stream, 'entry', entry,
    'epoch', string.format('%d', tonumber(epoch) + 1), 'deliveries', math.max(0, tonumber(deliveries) - 1))
  return 'ok'
end

-- Take over entries of workers without a heartbeat. keys: the jobs streams. args: prefix, worker, count.
-- Check and claim are one step, so two rescuers never get the same entry. Idle time plays no part: a slow
-- worker that is alive keeps its jobs. Answers as fetch does, without cursors.
local function rescue(keys, args)
  local prefix, worker, room = args[1], args[2], tonumber(args[3])
  -- A server that has just come back does not know yet who is alive.
  local uptime_s = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
  if uptime_s < LEASE_S or not is_alive(prefix, worker) then
    return { 0, {}, {} }
  end
  local rescued = {}
  for _, stream in ipairs(keys) do
    group_cursor(stream)
    for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
      local consumer = named(row, 1)
      if consumer.name ~= worker and not is_alive(prefix, consumer.name) then
        if consumer.pending == 0 then
          redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, consumer.name)
        elseif room > 0 then
          local ids = {}
          for i, entry in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', room, consumer.name)) do
            ids[i] = entry[1]
          end
          rescued[#rescued + 1] = { stream, redis.call('XCLAIM', stream, GROUP, worker, 0, unpack(ids)) }
          room = room - #ids
        end
      end
    end
  end
  return { 1, rescued, {} }
end

-- Set an entry aside. keys: dead, stream, and with a readable id job, log. args: prefix, id or '', entry,
-- worker, reason, body, its size, error record fields. The job fails with that record, unless the entry is not the job's
-- own or another worker owns the job.
local function bury(keys, args)
  local dead, stream, job, log = unpack(keys)
  local prefix, id, entry, worker, reason, body, body_bytes = unpack(args, 1, 7)
  if redis.call('XACK', stream, GROUP, entry) == 0 then
    return 'lost' -- acked before
  end
  set_aside(dead, id, stream, entry, worker, reason, body, body_bytes)
  if not job or #args == 7 or not is_usable(job, log) then
    return 'ok'
  end
  local state, job_entry, job_stream, owner, gateways = unpack(redis.call('HMGET', job,
    'state', 'entry', 'stream', 'owner', 'follow'))
  local is_own = not job_entry or (job_entry == entry and job_stream == stream)
  local next = next_state(state, 'failed')
  if next and is_own and (not state or owner == worker) then
    publish(log, prefix, id, gateways, { unpack(args, 8) }, true)
    finish(job, log, next, '')
  end
  return 'ok'
end

-- Whether entry id a is before b.
local function is_before(a, b)
  local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
  if a_ms ~= b_ms then
    return tonumber(a_ms) < tonumber(b_ms)
  end
  return tonumber(a_seq) < tonumber(b_seq)
end

-- Drop entries that every group has finished. keys: streams. Never XDEL: it makes the group's lag nil, and
-- autoscaling reads the lag.
local function trim(keys)
  local num_trimmed = 0
  for _, stream in ipairs(keys) do
    local oldest
    for _, row in ipairs(redis.call('EXISTS', stream) == 1 and redis.call('XINFO', 'GROUPS', stream) or {}) do
      local group = named(row, 1)
      local first = redis.call('XPENDING', stream, group.name)[2]
      if not first then
        local ms, seq = string.match(group['last-delivered-id'], '(%d+)-(%d+)')
        first = ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
      end
      if not oldest or is_before(first, oldest) then
        oldest = first
      end
    end
    if oldest then
      num_trimmed = num_trimmed + redis.call('XTRIM', stream, 'MINID', '=', oldest)
    end
  end
  return num_trimmed
end

redis.register_function('outrider_open', open)
redis.register_function('outrider_fetch', fetch)
redis.register_function('outrider_claim', claim)
redis.register_function('outrider_release', release)
redis.register_function('outrider_rescue', rescue)
redis.register_function('outrider_bury', bury)
redis.register_function{ function_name = 'outrider_trim', callback = trim, flags = { 'allow-oom' } }
