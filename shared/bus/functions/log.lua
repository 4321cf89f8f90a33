-- The log of a job: fenced appends, cancellation, followers.

local KEEP_EVERY = 256 -- tokens; a job that takes JOB_TTL_S for so few has been given up

-- Keep an unfinished job's keys, with the first tokens of a choice and now and then.
local function keep(job, log, choices)
  for _, own in pairs(choices) do
    if own.was == 0 or math.floor(own.was / KEEP_EVERY) ~= math.floor(own.len / KEEP_EVERY) then
      redis.call('EXPIRE', job, JOB_TTL_S)
      redis.call('EXPIRE', log, JOB_TTL_S)
      return
    end
  end
end

-- The records of a commit, each `count name value ...` from args[4] on: {fields, ev, choice, ...} each.
local function read_records(args)
  local records, i = {}, 4
  while i <= #args do
    local count = tonumber(args[i])
    local fields = { unpack(args, i + 1, i + count) }
    local record = named(fields, 1)
    record.fields, record.choice = fields, tonumber(record.choice)
    records[#records + 1] = record
    i = i + count + 1
  end
  return records
end

local function choice_of(len, is_finished, last)
  len = tonumber(len) or 0
  return { len = len, was = len, is_finished = is_finished == '1', last = last }
end

-- What the log holds of each choice: {len, was, is_finished, last} by number. The first one has been read.
local function read_choices(job, num_choices, first)
  local choices = { [0] = first }
  for choice = 1, num_choices - 1 do
    local own = redis.call('HMGET', job, 'len:' .. choice, 'fin:' .. choice, 'last:' .. choice)
    choices[choice] = choice_of(unpack(own))
  end
  return choices
end

-- Whether these very records are in the log already: then they were the last ones of every choice they touch.
local function is_repeat(records, choices, digest)
  local num_touched = 0
  for _, record in ipairs(records) do
    local own = choices[record.choice or -1]
    if own then
      num_touched = num_touched + 1
      if own.last ~= digest then
        return false
      end
    end
  end
  return num_touched > 0
end

local function is_last_open(choices, choice)
  for other, own in pairs(choices) do
    if other ~= choice and not own.is_finished then
      return false
    end
  end
  return true
end

-- Fold one record into the choices. Answers its event, or nil when it does not fit.
local function apply(record, choices)
  if record.ev == 'error' then
    return 'failed'
  end
  local own = choices[record.choice or -1]
  if not own or own.is_finished then
    return nil
  end
  own.is_touched = true
  if record.ev == 'tokens' then
    if tonumber(record.off) ~= own.len or not record.ids or record.ids == '' then
      return nil
    end
    local _, num_commas = string.gsub(record.ids, ',', '')
    own.len = own.len + num_commas + 1
    return 'committed'
  end
  -- The choice that ends last is the one that ends the job.
  if record.ev ~= (is_last_open(choices, record.choice) and 'done' or 'finished') then
    return nil
  end
  own.is_finished = true
  return record.ev == 'done' and 'done' or 'committed'
end

-- The event of all records together, or nil when one does not fit or follows a terminal one.
local function apply_all(records, choices)
  local event = 'committed'
  for _, record in ipairs(records) do
    event = event == 'committed' and apply(record, choices) or nil
    if not event then
      return nil
    end
  end
  return event
end

-- The fenced append. keys: job, log. args: prefix, id, epoch, records (each `count name value ...`).
-- Answers ok, fenced (another epoch owns the job), gone (ended or unknown) or conflict (a record does not fit),
-- and the cancel flag. All records or none. With a terminal record the job ends in the same step.
local function commit(keys, args)
  local job, log = keys[1], keys[2]
  local state, epoch, cancel, last, num_choices, gateways, stream, entry, len, is_finished, last_of_first =
    unpack(redis.call('HMGET', job, 'state', 'epoch', 'cancel', 'last', 'choices', 'follow', 'stream', 'entry',
      'len:0', 'fin:0', 'last:0'))
  cancel = cancel == '1' and '1' or '0'
  if not state then
    return { 'gone', cancel }
  end
  if epoch ~= args[3] then
    return { 'fenced', cancel }
  end
  local digest = redis.sha1hex(table.concat(args, '\0', 3))
  local first = choice_of(len, is_finished, last_of_first)
  local records, choices = read_records(args), read_choices(job, tonumber(num_choices), first)
  if last == digest or is_repeat(records, choices, digest) then
    return { 'ok', cancel }
  end
  if not next_state(state, 'committed') then
    return { 'gone', cancel }
  end
  local event = apply_all(records, choices)
  if not event then
    return { 'conflict', cancel }
  end
  for _, record in ipairs(records) do
    publish(log, args[1], args[2], gateways, record.fields, event ~= 'committed')
  end
  for choice, own in pairs(choices) do
    if own.is_touched then
      redis.call('HSET', job, 'len:' .. choice, string.format('%d', own.len),
        'fin:' .. choice, own.is_finished and '1' or '0', 'last:' .. choice, digest)
    end
  end
  if event == 'committed' then
    keep(job, log, choices)
  else
    finish(job, log, next_state(state, event), digest, stream, entry)
  end
  return { 'ok', cancel }
end

-- Ask for a job to end. keys: job. args: prefix, id, sender. Answers 1 when it was still to end.
-- The flag is what counts; the notice in the owner's inbox (a Batch of shared.protocol.messages) saves the
-- wait for its next commit.
local function cancel(keys, args)
  local job = keys[1]
  local state, owner = unpack(redis.call('HMGET', job, 'state', 'owner'))
  if not next_state(state, 'failed') then
    return 0
  end
  redis.call('HSET', job, 'cancel', '1')
  if redis.call('TTL', job) < 0 then
    redis.call('EXPIRE', job, JOB_TTL_S)
  end
  if owner and owner ~= '' then
    local notice = { 'cancel', args[2] }
    local batch = cmsgpack.pack({ tonumber(PROTOCOL_VERSION), args[3], { notice } })
    put(args[1] .. owner, batch)
  end
  return 1
end

local function set_followers(job, first, without)
  local gateways = { first }
  for gateway in string.gmatch(redis.call('HGET', job, 'follow') or '', '[^,]+') do
    if gateway ~= without and #gateways < MAX_FOLLOWERS then
      gateways[#gateways + 1] = gateway
    end
  end
  redis.call('HSET', job, 'follow', table.concat(gateways, ','))
end

-- Copy a job's records to a gateway's feed from now on. keys: job. args: gateway. Answers 0 when no such job.
-- Beyond MAX_FOLLOWERS the one that came first is dropped: it reads the log.
local function follow(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    return 0
  end
  set_followers(keys[1], args[1], args[1])
  return 1
end

-- The opposite. keys: job. args: gateway.
local function unfollow(keys, args)
  if redis.call('EXISTS', keys[1]) == 0 then
    return 0
  end
  set_followers(keys[1], nil, args[1])
  return 1
end

redis.register_function('outrider_commit', commit)
redis.register_function('outrider_cancel', cancel)
redis.register_function('outrider_follow', follow)
redis.register_function('outrider_unfollow', unfollow)
