-- Fragment: one queue's settings, its events, its wake-up markers and the places where jobs wait.
-- A queue is a table {base, events, paused, slots, max, duration, kept, parks, closed (ms, by a task)}; `base` is
-- "prefix:name:" and every key is derived from it.
local call = redis.call
-- Answers {err = …} instead of ending the script: for keys that may hold something else than a job.
local attempt = redis.pcall

local EVENTS_KEPT = '10000'
local PER_MS = 4096 -- how many delayed jobs of one millisecond keep their order
local PER_PRIORITY = 4294967296 -- how many jobs of one priority keep their order

local function open_queue(base)
  local found = call('HMGET', base .. 'meta', 'paused', 'concurrency', 'max', 'duration', 'opts.maxLenEvents', 'version')
  return {
    base = base,
    events = base .. 'events',
    paused = found[1] and true or false,
    slots = tonumber(found[2] or nil),
    max = tonumber(found[3] or nil),
    duration = tonumber(found[4] or nil),
    kept = found[5],
    parks = found[6] and string.sub(found[6], 1, 9) == 'bullmq:5.',
  }
end

-- How many events the stream keeps; the default is written down where nobody has said it.
local function events_kept(q)
  if not q.kept then
    q.kept = EVENTS_KEPT
    call('HSET', q.base .. 'meta', 'opts.maxLenEvents', q.kept)
  end
  return q.kept
end

local function emit(q, ...)
  call('XADD', q.events, '*', 'event', ...)
end

local function emit_trimming(q, ...)
  call('XADD', q.events, 'MAXLEN', '~', events_kept(q), '*', 'event', ...)
end

-- The first time in a call the stream is trimmed on the way: the events of one call are few beside those it keeps.
local function emit_and_trim_once(q, ...)
  if q.trimmed then
    return emit(q, ...)
  end
  q.trimmed = true
  return emit_trimming(q, ...)
end

-- No job may start now: the queue is paused, or as many run as the global concurrency allows.
local function is_blocked(q)
  return q.paused or (q.slots ~= nil and call('LLEN', q.base .. 'active') >= q.slots)
end

local function wake(q)
  if not is_blocked(q) then
    call('ZADD', q.base .. 'marker', '0', '0')
  end
end

local function first_due(q)
  local first = call('ZRANGE', q.base .. 'delayed', 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) / PER_MS or nil
end

local function wake_when_due(q)
  local due = first_due(q)
  if due then
    call('ZADD', q.base .. 'marker', due, '1')
  end
end

-- BullMQ 5 parks the waiting jobs of a paused queue in `paused`, and its resume puts that list in the place of `wait`. New jobs
-- belong there once it has parked any; and where the queue was last opened by a BullMQ 5, unless others still lie in `wait`.
local function waiting_list(q)
  local wait, parked = q.base .. 'wait', q.base .. 'paused'
  if q.paused and (call('EXISTS', parked) == 1 or q.parks and call('EXISTS', wait) == 0) then
    return parked
  end
  return wait
end

-- A table of what a job's field says in JSON; an empty one where it is missing, or a stranger wrote something else.
local function decoded(text)
  local is_json, value = pcall(cjson.decode, text or '{}')
  return is_json and type(value) == 'table' and value or {}
end

-- Puts a job where workers take it from, without waking any. `lifo`: the next one of the list.
local function line_up(q, id, priority, lifo)
  if priority ~= 0 then
    local turn = call('INCR', q.base .. 'pc') % PER_PRIORITY
    call('ZADD', q.base .. 'prioritized', priority * PER_PRIORITY + turn, id)
  elseif lifo then
    call('RPUSH', waiting_list(q), id)
  else
    call('LPUSH', waiting_list(q), id)
  end
end

-- Puts a job before all others of its kind, without waking anybody.
local function line_up_first(q, id, priority)
  if priority ~= 0 then
    call('ZADD', q.base .. 'prioritized', priority * PER_PRIORITY, id)
  else
    call('RPUSH', waiting_list(q), id)
  end
end

local function hold_until(q, id, due)
  local lowest, highest = due * PER_MS, due * PER_MS + PER_MS - 1
  local last = call('ZREVRANGEBYSCORE', q.base .. 'delayed', highest, lowest, 'WITHSCORES', 'LIMIT', 0, 1)
  local score = last[2] and math.min(tonumber(last[2]) + 1, highest) or lowest
  call('ZADD', q.base .. 'delayed', score, id)
end

-- 0 also where the key holds something that is no job.
local function priority_of(q, id)
  return tonumber(attempt('HGET', q.base .. id, 'priority') or 0) or 0
end

local function promote(q, due)
  call('ZREM', q.base .. 'delayed', unpack(due))
  for _, id in ipairs(due) do
    line_up(q, id, priority_of(q, id), false)
    emit(q, 'waiting', 'jobId', id, 'prev', 'delayed')
    if call('EXISTS', q.base .. id) == 1 then
      attempt('HSET', q.base .. id, 'delay', 0)
    end
  end
  wake(q)
end

-- Moves the jobs that are due to where workers take them from; at most a thousand a call.
local function promote_due(q, now)
  local due = call('ZRANGEBYSCORE', q.base .. 'delayed', 0, (now + 1) * PER_MS - 1, 'LIMIT', 0, 1000)
  if #due > 0 then
    promote(q, due)
  end
end
