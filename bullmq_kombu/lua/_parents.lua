-- Fragment: removal of jobs and what a child's end means to its parent. Needs _queue.
-- Parents and children refer to each other by full key, "prefix:queue:id".

local function base_of(key)
  return string.match(key, '^(.*:)[^:]*$'), string.match(key, '[^:]*$')
end

local function delete_job_keys(key)
  return call('DEL', key, key .. ':logs', key .. ':dependencies', key .. ':processed', key .. ':failed',
    key .. ':unsuccessful')
end

local function line_up_parent(q, id, priority)
  if priority ~= 0 then
    line_up(q, id, priority, false)
  else
    line_up_first(q, id, 0)
  end
end

-- A parent goes on: to `delayed` if it has a delay, before the others otherwise. `now` is the caller's clock.
local function release_parent(parent_key, now)
  local base, id = base_of(parent_key)
  if call('ZREM', base .. 'waiting-children', id) == 0 then
    return false
  end
  local q = open_queue(base)
  local found = call('HMGET', parent_key, 'delay', 'priority')
  local delay, priority = tonumber(found[1] or 0) or 0, tonumber(found[2] or 0) or 0
  if delay > 0 then
    call('ZADD', base .. 'delayed', (now + delay) * PER_MS, id)
    emit(q, 'delayed', 'jobId', id, 'delay', now + delay)
    wake_when_due(q)
  else
    line_up_parent(q, id, priority)
    wake(q)
    emit(q, 'waiting', 'jobId', id, 'prev', 'waiting-children')
  end
  return true
end

local function release_parent_if_free(parent_key, now)
  if call('EXISTS', parent_key .. ':dependencies') == 0 then
    release_parent(parent_key, now)
  end
end

-- The child at `key` has its value: told to the parent once, however often it is said.
local function child_completed(key, parent_key, value, now)
  if call('SREM', parent_key .. ':dependencies', key) == 1 then
    call('HSET', parent_key .. ':processed', key, value)
    release_parent_if_free(parent_key, now)
  end
end

-- The child at `key` has failed for good; `flags` is its stored `parent` JSON and says which policy it was added with.
local function child_failed(key, parent_key, flags, reason, now)
  local policy = decoded(flags)
  if not (policy.fpof or policy.cpof or policy.idof or policy.rdof) then
    return
  end
  if call('SREM', parent_key .. ':dependencies', key) == 0 then
    return
  end
  local base, id = base_of(parent_key)
  if policy.fpof then
    call('ZADD', parent_key .. ':unsuccessful', now, key)
    local text = 'child ' .. key .. ' failed'
    if call('ZSCORE', base .. 'waiting-children', id) then
      call('HSET', parent_key, 'defa', text)
      release_parent(parent_key, now)
    elseif call('ZREM', base .. 'delayed', id) == 1 then
      local q = open_queue(base)
      call('HSET', parent_key, 'defa', text, 'delay', 0)
      line_up_parent(q, id, priority_of(q, id))
      wake(q)
      emit(q, 'waiting', 'jobId', id, 'prev', 'waiting-children') -- as BullMQ says it, though it was delayed
    elseif call('EXISTS', parent_key) == 1 and not call('ZSCORE', base .. 'failed', id) then
      call('HSET', parent_key, 'defa', text)
    end
  elseif policy.cpof then
    call('HSET', parent_key .. ':failed', key, reason)
    release_parent(parent_key, now)
  else
    if policy.idof then
      call('HSET', parent_key .. ':failed', key, reason)
    end
    release_parent_if_free(parent_key, now)
  end
end

-- A child that is removed no longer holds its parent up.
local function detach_from_parent(key, parent_key)
  if parent_key and parent_key ~= '' and call('SREM', parent_key .. ':dependencies', key) == 1
    and call('EXISTS', parent_key .. ':dependencies') == 0 then
    local base, id = base_of(parent_key)
    if call('ZREM', base .. 'waiting-children', id) == 1 then
      local q = open_queue(base)
      line_up_first(q, id, 0)
      wake(q)
      emit(q, 'waiting', 'jobId', id, 'prev', 'waiting-children')
    end
  end
end

-- Removes finished jobs by retention: no event, their deduplication keys stay.
local function forget_jobs(q, ids)
  local keys = {}
  for _, id in ipairs(ids) do
    local key = q.base .. id
    local parent_key = call('HGET', key, 'parentKey')
    if parent_key then
      detach_from_parent(key, parent_key)
    end
    local at = #keys
    keys[at + 1], keys[at + 2], keys[at + 3] = key, key .. ':logs', key .. ':dependencies'
    keys[at + 4], keys[at + 5], keys[at + 6] = key .. ':processed', key .. ':failed', key .. ':unsuccessful'
    if #keys >= 3000 then
      call('DEL', unpack(keys))
      keys = {}
    end
  end
  if #keys > 0 then
    call('DEL', unpack(keys))
  end
end

-- A job goes for good, by an administrator's hand: its deduplication id is free; a parent in the same queue that waited for
-- nothing but it goes too, any other goes on.
local function remove_hard(base, id)
  local key = base .. id
  local found = call('HMGET', key, 'parentKey', 'deid')
  delete_job_keys(key)
  if found[2] and call('GET', base .. 'de:' .. found[2]) == id then
    call('DEL', base .. 'de:' .. found[2], base .. 'dn:' .. found[2])
  end
  local parent_key = found[1]
  if parent_key and parent_key ~= '' and call('SREM', parent_key .. ':dependencies', key) == 1
    and call('EXISTS', parent_key .. ':dependencies') == 0 then
    local parent_base, parent_id = base_of(parent_key)
    if call('ZREM', parent_base .. 'waiting-children', parent_id) == 1 then
      if parent_base == base then
        remove_hard(parent_base, parent_id)
      else
        local q = open_queue(parent_base)
        line_up_first(q, parent_id, 0)
        wake(q)
      end
    end
  end
end
