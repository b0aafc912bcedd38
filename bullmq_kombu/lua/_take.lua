-- Fragment: activation of waiting jobs. Needs _queue.
-- A worker is a table {token, lock_ms, name, max, window}: the token of this delivery, how long its locks hold, the name
-- written to `pb` ('' for none), and the worker's own rate limit (nil for none).

-- An id without a job. A key of that name that holds something else is not ours, and in no state: `failed` is for jobs.
local function fail_ghost(q, id, now)
  local reason = 'Missing key for job ' .. id .. '. moveToActive'
  if call('EXISTS', q.base .. id) == 1 then
    return emit(q, 'failed', 'jobId', id, 'failedReason', 'The key of job ' .. id .. ' holds no job', 'prev', 'waiting')
  end
  call('HSET', q.base .. id, 'name', '', 'data', '{}', 'opts', '{}', 'timestamp', now, 'delay', 0, 'priority', 0,
    'failedReason', reason, 'finishedOn', now)
  call('ZADD', q.base .. 'failed', now, id)
  emit(q, 'failed', 'jobId', id, 'failedReason', reason, 'prev', 'waiting')
end

-- How often the job was started, and whether it is only to be failed (`defa`).
local function look_at(hash)
  local started, deferred = 0, false
  for i = 1, #hash, 2 do
    if hash[i] == 'ats' then
      started = tonumber(hash[i + 1]) or 0
    elseif hash[i] == 'defa' then
      deferred = true
    end
  end
  return started, deferred
end

-- Takes ids out of `wait` (its tail is next), then out of `prioritized`. The second value: they are in `active` already.
local function next_ids(q, wanted)
  local ids = {}
  if wanted == 1 then -- the commonest case, in one command
    local id = call('RPOPLPUSH', q.base .. 'wait', q.base .. 'active')
    if id then
      return { id }, true
    end
  end
  local tail = call('LRANGE', q.base .. 'wait', -wanted, -1)
  if #tail > 0 then
    call('LTRIM', q.base .. 'wait', 0, -#tail - 1)
    for i = #tail, 1, -1 do
      ids[#ids + 1] = tail[i]
    end
  end
  if #tail < wanted then
    local popped = call('ZPOPMIN', q.base .. 'prioritized', wanted - #tail)
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
    end
    if #popped < 2 * (wanted - #tail) then -- nothing is left
      call('DEL', q.base .. 'pc')
    end
  end
  return ids, false
end

-- Returns jobs (a list of {id, hash before activation}), the ms for which the rate limit closes the queue (0: open), and
-- when the next delayed job is due (ms, 0: none; only told when there was less than `wanted`).
local function take(q, now, wanted, worker)
  local jobs = {}
  promote_due(q, now)
  if q.closed then
    return jobs, q.closed, 0
  end
  local max = q.max or worker.max
  if max then
    local used = tonumber(call('GET', q.base .. 'limiter') or 0)
    if used >= max then
      local ttl = call('PTTL', q.base .. 'limiter')
      if ttl > 0 then
        return jobs, ttl, 0
      elseif ttl == 0 then
        call('DEL', q.base .. 'limiter')
        used = 0
      end
    end
    wanted = math.min(wanted, math.max(max - used, 1))
  end
  local room = wanted
  if q.paused then
    room = 0
  elseif q.slots then
    room = math.min(wanted, q.slots - call('LLEN', q.base .. 'active'))
  end
  if room <= 0 then
    return jobs, 0, 0
  end

  local ids, moved = next_ids(q, room)
  local counted = 0
  local taken = {}
  for _, id in ipairs(ids) do
    local key = q.base .. id
    local hash = attempt('HGETALL', key)
    if #hash == 0 then
      if moved then
        call('LREM', q.base .. 'active', 1, id)
      end
      if string.sub(id, 1, 2) ~= '0:' then -- a marker left behind by BullMQ 4
        fail_ghost(q, id, now)
      end
    else
      jobs[#jobs + 1] = { id, hash }
      taken[#taken + 1] = id
      call('SET', key .. ':lock', worker.token, 'PX', worker.lock_ms)
      emit(q, 'active', 'jobId', id, 'prev', 'waiting')
      local started, deferred = look_at(hash)
      if worker.name ~= '' then
        call('HSET', key, 'processedOn', now, 'ats', started + 1, 'pb', worker.name)
      else
        call('HSET', key, 'processedOn', now, 'ats', started + 1)
      end
      if max and not deferred then
        counted = counted + 1
      end
    end
  end
  if #taken > 0 and not moved then
    call('LPUSH', q.base .. 'active', unpack(taken))
  end
  if counted > 0 then
    local window = worker.window or q.duration
    if call('INCRBY', q.base .. 'limiter', counted) == counted and window then
      call('PEXPIRE', q.base .. 'limiter', window)
    end
  end
  if #ids == room then -- there may be more, for whoever waits
    call('ZADD', q.base .. 'marker', '0', '0')
  end
  if #jobs < wanted then
    return jobs, 0, math.floor(first_due(q) or 0)
  end
  return jobs, 0, 0
end

-- Takes from several queues, in the order given, until there are `wanted`. Returns what a script answers: a flat list of
-- queue number, id, hash for each job; then for each queue asked: its number, ms closed, next due.
local function take_from(bases, now, wanted, worker, asked, opened)
  local jobs, states = {}, {}
  for number = 1, asked do
    if wanted <= 0 then
      break
    end
    local q = opened[number] or open_queue(bases[number])
    opened[number] = q
    local got, closed, due = take(q, now, wanted, worker)
    for _, job in ipairs(got) do
      jobs[#jobs + 1] = number
      jobs[#jobs + 1] = job[1]
      jobs[#jobs + 1] = job[2]
    end
    q.answered = #got > 0 or closed > 0 or due > 0 or q.paused
    wanted = wanted - #got
    states[#states + 1] = number
    states[#states + 1] = closed
    states[#states + 1] = due
  end
  return jobs, states
end
