-- Fragment: the end of one delivery of a job. Needs _queue, _parents, _add, _promise.
-- Every function answers 0 or BullMQ's error code, and changes nothing where it is not 0.

-- What leaving `active` writes is collected in the queue's table and written by `settle`, once for many jobs:
-- locks to delete, ids to take out of `stalled`, and the members that `completed` and `failed` get.

local function settle(q)
  if q.locks then
    call('DEL', unpack(q.locks))
    call('SREM', q.base .. 'stalled', unpack(q.left))
    q.locks, q.left = nil, nil
  end
  for target, members in pairs(q.finished or {}) do
    call('ZADD', q.base .. target, unpack(members))
  end
  q.finished = nil
end

-- Takes the lock away from this delivery: 0, -2 (nobody holds it) or -6 (another delivery does). Token '0' asks nobody.
-- `held` is the lock's value, where it is known.
local function unlock(q, id, token, held)
  if token == '0' then
    return 0
  end
  local key = q.base .. id .. ':lock'
  if held == nil then
    held = call('GET', key)
  end
  if held ~= token then
    return held and -6 or -2
  end
  if not q.locks or #q.locks > 1000 then
    settle(q)
    q.locks, q.left = {}, {}
  end
  q.locks[#q.locks + 1] = key
  q.left[#q.left + 1] = id
  return 0
end

-- Out of `active`, guarded: 0, -2, -6 or -3 (not active). The list is searched from the end where a job of this call was
-- last: jobs mostly end in the order in which they were taken, but old ones may lie at the tail for long.
local function leave_active(q, id, token, held)
  local code = unlock(q, id, token, held)
  if code == 0 then
    if q.from == nil then
      q.from = call('LINDEX', q.base .. 'active', '-1') == id and '-1' or '1'
    end
    if call('LREM', q.base .. 'active', q.from, id) == 0 then
      code = -3
    end
  end
  return code
end

-- When the owner of a deduplication id ends: its key goes; a job stored meanwhile by keepLastIfActive is added.
local function release_deduplication(q, id, dedup, now)
  local key = q.base .. 'de:' .. dedup
  local next_key = q.base .. 'dn:' .. dedup
  local owned = call('GET', key) == id
  if owned and call('EXISTS', next_key) == 1 then
    add_stored(q, key, next_key, now)
    return
  end
  local ttl = call('PTTL', key)
  if ttl == 0 or (ttl == -1 and owned) then
    call('DEL', key)
  end
end

local function count_metric(q, target, now, points)
  local key = q.base .. 'metrics:' .. target
  local before = call('HINCRBY', key, 'count', 1) - 1
  local found = call('HMGET', key, 'prevTS', 'prevCount')
  local previous = tonumber(found[1] or nil)
  if not previous then
    call('HSET', key, 'prevTS', now, 'prevCount', 0)
    return
  end
  local minutes = math.min(math.floor(now / 60000) - math.floor(previous / 60000), points)
  if minutes > 0 then
    call('LPUSH', key .. ':data', before - tonumber(found[2] or 0))
    for _ = 2, minutes do
      call('LPUSH', key .. ':data', 0)
    end
    call('LTRIM', key .. ':data', 0, points - 1)
    call('HSET', key, 'prevTS', now, 'prevCount', before)
  end
end

-- Retention of one set of finished jobs: those older than `age` seconds (at most `limit` a call), and all beyond `count`.
local function prune(q, target, keep, now)
  local key = q.base .. target
  if keep.age then
    local old = call('ZRANGEBYSCORE', key, '-inf', now - keep.age * 1000, 'LIMIT', 0, keep.limit)
    if #old > 0 then
      forget_jobs(q, old)
      call('ZREMRANGEBYRANK', key, 0, #old - 1)
    end
  end
  if keep.count > 0 then
    local beyond = call('ZRANGE', key, 0, -keep.count - 1)
    if #beyond > 0 then
      forget_jobs(q, beyond)
      call('ZREMRANGEBYRANK', key, 0, -keep.count - 1)
    end
  end
end

-- What the end of a job means to the owner of its deduplication id and to its parent; `found` is as `finish` reads it.
local function tell_others(q, key, id, found, is_completed, text, now)
  local dedup, parent_key = found[4], found[5]
  settle(q)
  if dedup then
    release_deduplication(q, id, dedup, now)
  end
  if parent_key then
    if is_completed then
      child_completed(key, parent_key, text, now)
    else
      child_failed(key, parent_key, found[6], text, now)
    end
  end
end

local function keep_nothing(key, parent_key)
  detach_from_parent(key, parent_key)
  delete_job_keys(key)
end

-- What few ends have besides.
local function keep_more(key, more, now)
  if more.tm then
    call('HSET', key, 'tm', more.tm)
  end
  if more.silent then
    call('HSET', key, 'silent', now)
  end
  if more.log then
    call('RPUSH', key .. ':logs', more.log)
  end
end

-- `text` is the return value (JSON) or the reason; `stack` the JSON list of traces ('' when completed); `keep` is
-- {count, age, limit} with count -1 for all and 0 for none; `more` may hold log, metrics, tm, silent. `held` is the lock's
-- value and `is_childless` true, where that is known. Answers also how many attempts were made; the events are the caller's.
local function finish(q, target, id, token, now, text, stack, keep, more, held, is_childless)
  local key = q.base .. id
  local found = call('HMGET', key, 'name', 'atm', 'defa', 'deid', 'parentKey', 'parent')
  if not found[1] and call('EXISTS', key) == 0 then
    return -1
  end
  local is_completed = target == 'completed'
  if is_completed and not is_childless and call('EXISTS', key .. ':dependencies', key .. ':unsuccessful') > 0 then
    return call('EXISTS', key .. ':dependencies') == 1 and -4 or -9
  end
  local code = leave_active(q, id, token, held)
  if code ~= 0 then
    return code
  end
  local property = is_completed and 'returnvalue' or 'failedReason'
  local made = (tonumber(found[2] or 0) or 0) + 1
  if found[4] or found[5] then
    tell_others(q, key, id, found, is_completed, text, now)
  end
  if keep.count == 0 then
    keep_nothing(key, found[5])
  else
    q.finished = q.finished or {}
    local members = q.finished[target] or {}
    q.finished[target] = members
    members[#members + 1] = now
    members[#members + 1] = id
    if stack ~= '' then
      call('HSET', key, property, text, 'finishedOn', now, 'atm', made, 'stacktrace', stack)
    else
      call('HSET', key, property, text, 'finishedOn', now, 'atm', made)
    end
    if found[3] then
      call('HDEL', key, 'defa')
    end
    if more.tm or more.silent or more.log then
      keep_more(key, more, now)
    end
  end
  if more.metrics then
    count_metric(q, target, now, more.metrics)
  end
  return 0, made
end

-- The events of that end.
local function tell(q, target, id, text, made, attempts)
  local property = target == 'completed' and 'returnvalue' or 'failedReason'
  emit_and_trim_once(q, target, 'jobId', id, property, text, 'prev', 'active')
  if target == 'failed' and made >= attempts then
    emit(q, 'retries-exhausted', 'jobId', id, 'attemptsMade', made)
  end
end

-- Another attempt, at once or after `delay` ms. `reason` (nil for none) and `stack` ('' for none) of this one are kept; `more`
-- may hold lifo, skip (the attempt does not count), tm, log, and fields (what else to write to the hash, flat).
local function try_again(q, id, token, now, reason, stack, delay, more)
  local key = q.base .. id
  if delay <= 0 then
    promote_due(q, now)
  end
  local code = call('EXISTS', key) == 1 and leave_active(q, id, token) or -1
  if code ~= 0 then
    return code
  end
  settle(q)
  if reason then
    call('HSET', key, 'failedReason', reason)
  end
  if stack ~= '' then
    call('HSET', key, 'stacktrace', stack)
  end
  if more.tm then
    call('HSET', key, 'tm', more.tm)
  end
  if more.log then
    call('RPUSH', key .. ':logs', more.log)
  end
  if more.fields and #more.fields > 0 then
    call('HSET', key, unpack(more.fields))
  end
  take_back_promise(key)
  if not more.skip then
    call('HINCRBY', key, 'atm', 1)
  end
  if delay > 0 then
    call('HSET', key, 'delay', delay)
    hold_until(q, id, now + delay)
    emit_trimming(q, 'delayed', 'jobId', id, 'delay', now + delay)
    wake_when_due(q)
    if q.slots then
      wake(q) -- a place became free
    end
  else
    line_up(q, id, priority_of(q, id), more.lifo)
    wake(q)
    emit_trimming(q, 'waiting', 'jobId', id, 'prev', 'active')
  end
  return 0
end

-- Back to the head of the queue as if it had not been taken; no attempt is counted.
local function put_back(q, id, token)
  local code = call('EXISTS', q.base .. id) == 1 and leave_active(q, id, token) or -1
  if code ~= 0 then
    return code
  end
  settle(q)
  take_back_promise(q.base .. id)
  line_up_first(q, id, priority_of(q, id))
  wake(q)
  emit_trimming(q, 'waiting', 'jobId', id, 'prev', 'active')
  return 0
end

-- Any end but completed, failed and commit.
local function go_on(q, what, id, token, now, text, stack, delay, more)
  if what == 'retry' then
    return try_again(q, id, token, now, text, stack, delay, more)
  end
  local code = put_back(q, id, token)
  if what == 'limit' and code == 0 then
    code = math.max(call('PTTL', q.base .. 'limiter'), 0)
    q.closed = code > 0 and code or nil
  end
  return code
end
