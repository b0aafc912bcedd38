-- Fragment: storing new jobs. Needs _queue, _parents.
-- A job is a table {id, name, data, opts, timestamp, delay, priority, celery, more}: id '' asks for the next number; data and
-- opts are JSON; times are ms; `celery` ('' for none) is kept beside BullMQ's fields; `more` is what few jobs have:
-- {lifo, parentKey, parent, rjk, de, children, replace, unique, carried}.

-- `more` of a job that has nothing of this, and of one that has only what a task's has.
local NO_MORE = {}
local UNIQUE = { unique = true }

local function write(q, id, job)
  local key = q.base .. id
  if job.celery ~= '' then
    call('HSET', key, 'name', job.name, 'data', job.data, 'opts', job.opts, 'timestamp', job.timestamp,
      'delay', job.delay, 'priority', job.priority, 'celery', job.celery)
  else
    call('HSET', key, 'name', job.name, 'data', job.data, 'opts', job.opts, 'timestamp', job.timestamp,
      'delay', job.delay, 'priority', job.priority)
  end
  emit(q, 'added', 'jobId', id, 'name', job.name)
end

-- Where workers take it from.
local function offer(q, id, job)
  line_up(q, id, tonumber(job.priority), job.more.lifo)
  wake(q)
  emit_trimming(q, 'waiting', 'jobId', id)
end

local function store(q, id, job)
  local key, more = q.base .. id, job.more
  write(q, id, job)
  if more.parentKey then
    call('HSET', key, 'parentKey', more.parentKey, 'parent', more.parent)
  end
  if more.rjk then
    call('HSET', key, 'rjk', more.rjk)
  end
  if more.de then
    call('HSET', key, 'deid', more.de.id)
  end
end

local function place(q, id, job)
  local delay = tonumber(job.delay)
  if job.more.children then
    call('ZADD', q.base .. 'waiting-children', job.timestamp, id)
    emit_trimming(q, 'waiting-children', 'jobId', id)
  elseif delay > 0 then
    local due = tonumber(job.timestamp) + delay
    hold_until(q, id, due)
    emit_trimming(q, 'delayed', 'jobId', id, 'delay', due)
    wake_when_due(q)
  else
    offer(q, id, job)
  end
  if job.more.parentKey then
    call('SADD', job.more.parentKey .. ':dependencies', q.base .. id)
  end
end

-- The id is taken by another job: nothing is added, but a parent given now becomes the job's parent if it had none alive.
local function join_existing(q, id, job, now)
  local key, parent_key = q.base .. id, job.more.parentKey
  if parent_key then
    local current = call('HGET', key, 'parentKey')
    if current and current ~= parent_key and call('EXISTS', current) == 1 then
      return -7
    end
    if call('ZSCORE', q.base .. 'completed', id) then
      call('HSET', parent_key .. ':processed', key, call('HGET', key, 'returnvalue') or 'null')
      if not job.more.in_flow then
        release_parent_if_free(parent_key, now)
      end
    else
      call('SADD', parent_key .. ':dependencies', key)
    end
    call('HSET', key, 'parentKey', parent_key, 'parent', job.more.parent)
  end
  emit_trimming(q, 'duplicated', 'jobId', id)
  return id
end

-- What keepLastIfActive remembers: the job to add when the owner of the deduplication id ends.
local function store_next(q, id, job, dedup)
  local key = q.base .. 'dn:' .. dedup.id
  call('DEL', key)
  call('HSET', key, 'name', job.name, 'data', job.data, 'opts', job.opts, 'jid', id)
  if job.celery ~= '' then
    call('HSET', key, 'celery', job.celery)
  end
  if job.more.parentKey then
    call('HSET', key, 'pk', job.more.parentKey, 'pd', job.more.parent, 'pdk', job.more.parentKey .. ':dependencies')
  end
  if job.more.rjk then
    call('HSET', key, 'rjk', job.more.rjk)
  end
  call('PERSIST', q.base .. 'de:' .. dedup.id)
end

local function is_active(q, id)
  for _, active in ipairs(call('LRANGE', q.base .. 'active', 0, -1)) do
    if active == id then
      return true
    end
  end
  return false
end

local function say_deduplicated(q, kept, dedup, dropped)
  emit_trimming(q, 'deduplicated', 'jobId', kept, 'deduplicationId', dedup, 'deduplicatedJobId', dropped)
end

local function own_deduplication(key, id, ttl)
  if ttl and ttl > 0 then
    call('SET', key, id, 'PX', ttl)
  else
    call('SET', key, id)
  end
end

-- Returns the id of the job that already stands for this deduplication id, or nil: then `id` has become its owner.
local function deduplicate(q, id, job)
  local dedup = job.more.de
  local key = q.base .. 'de:' .. dedup.id
  local ttl = not dedup.keepLastIfActive and tonumber(dedup.ttl) or nil
  local owner = call('GET', key)
  if owner and call('EXISTS', q.base .. owner) == 0 and call('PTTL', key) == -1 then
    call('DEL', key, q.base .. 'dn:' .. dedup.id) -- the owner is gone and nothing else would ever free the id
    owner = false
  end
  if not owner then
    own_deduplication(key, id, ttl)
    return nil
  end

  local waits_for_owner = dedup.keepLastIfActive and is_active(q, owner)
  if dedup.replace and not job.more.children and call('ZREM', q.base .. 'delayed', owner) == 1 then
    delete_job_keys(q.base .. owner)
    emit(q, 'removed', 'jobId', owner, 'prev', 'delayed')
    say_deduplicated(q, id, dedup.id, owner)
    call('DEL', q.base .. 'dn:' .. dedup.id)
    if ttl and not dedup.extend then
      own_deduplication(key, id, call('PTTL', key)) -- the window goes on
    else
      own_deduplication(key, id, ttl)
    end
    return nil
  end

  if waits_for_owner then
    store_next(q, id, job, dedup)
  elseif dedup.replace and not job.more.children then
    return owner
  elseif dedup.extend and ttl and ttl > 0 then
    call('SET', key, owner, 'PX', ttl)
  end
  say_deduplicated(q, owner, dedup.id, id)
  if dedup.reschedule and call('ZSCORE', q.base .. 'delayed', owner) then
    local delay = math.max(tonumber(job.delay) or 0, 0)
    local due = tonumber(job.timestamp) + delay
    call('HSET', q.base .. owner, 'delay', delay)
    hold_until(q, owner, due)
    emit_trimming(q, 'delayed', 'jobId', owner, 'delay', due)
    wake_when_due(q)
  end
  return owner
end

-- Whether the job at `key` was made of this very message, published again because the answer to the first time was lost.
-- `carried`: by the job's own task, which keeps the timestamp.
local function is_same_message(key, job)
  local found = call('HMGET', key, 'name', 'data', 'celery', 'timestamp')
  return found[1] == job.name and found[2] == job.data and (found[3] or '') == job.celery
    and (found[4] == job.timestamp or job.more.carried)
end

-- The id is taken by another job. Returns the answer, or nil where `id` is free now.
local function meet_existing(q, id, job, now)
  if not job.more.unique then
    return join_existing(q, id, job, now)
  elseif is_same_message(q.base .. id, job) then
    return id
  end
  local was = call('ZREM', q.base .. 'completed', id) == 1 and 'completed'
    or call('ZREM', q.base .. 'failed', id) == 1 and 'failed'
  if not was then
    return 0
  end
  forget_jobs(q, { id })
  emit_trimming(q, 'removed', 'jobId', id, 'prev', was)
  return nil
end

-- Adds any job; `number` is what was drawn for it, where that has been done. Answers as `add`.
local function add_unusual(q, job, now, number)
  local more = job.more
  if more.parentKey and call('EXISTS', more.parentKey) == 0 then
    return -5
  end
  number = number or call('INCR', q.base .. 'id')
  local id = job.id
  if id == '' then
    id = tostring(number)
  elseif call('EXISTS', q.base .. id) == 1 then
    local standing = meet_existing(q, id, job, now)
    if standing then
      return standing
    end
  end
  if more.de then
    local standing = deduplicate(q, id, job)
    if standing then
      return standing
    end
  end
  store(q, id, job)
  place(q, id, job)
  return id
end

-- Adds one job. Answers its id (or that of the job which stands for it), -5 or -7 (BullMQ's codes), or 0 where
-- `more.unique` asks for an id of its own and a job that is not finished has it.
local function add(q, job, now)
  if job.delay ~= '0' or job.more ~= NO_MORE and job.more ~= UNIQUE then
    return add_unusual(q, job, now)
  end
  local number = call('INCR', q.base .. 'id')
  local id = job.id
  if id == '' then
    id = tostring(number)
  elseif call('EXISTS', q.base .. id) == 1 then
    return add_unusual(q, job, now, number)
  end
  write(q, id, job)
  offer(q, id, job)
  return id
end

-- Adds the job that keepLastIfActive stored under `next_key`; it becomes the owner of the deduplication id at `key`.
local function add_stored(q, key, next_key, now)
  local f = {}
  local flat = call('HGETALL', next_key)
  for i = 1, #flat, 2 do
    f[flat[i]] = flat[i + 1]
  end
  local opts = decoded(f.opts)
  local id = f.jid
  call('INCR', q.base .. 'id')
  local job = {
    id = id, name = f.name, data = f.data, opts = f.opts, timestamp = now, delay = tonumber(opts.delay) or 0,
    priority = tonumber(opts.priority) or 0, celery = f.celery or '',
    more = { lifo = opts.lifo, parentKey = f.pk, parent = f.pd, rjk = f.rjk, de = opts.de },
  }
  call('DEL', next_key)
  call('SET', key, id)
  store(q, id, job)
  place(q, id, job)
end
