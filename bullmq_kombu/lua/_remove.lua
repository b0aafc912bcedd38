-- Fragment: removing a job and what hangs on it, by hand. Needs _queue, _parents, _state.

-- Whether the job, or with `deep` a child of it that has not ended, or a child of that, is in a worker's hands.
local function is_in_hand(key, deep)
  if call('EXISTS', key .. ':lock') == 1 then
    return true
  end
  if deep then
    for _, child in ipairs(call('SMEMBERS', key .. ':dependencies')) do
      if is_in_hand(child, true) then
        return true
      end
    end
  end
  return false
end

local function free_deduplication(base, id, dedup)
  if dedup and call('GET', base .. 'de:' .. dedup) == id then
    call('DEL', base .. 'de:' .. dedup, base .. 'dn:' .. dedup)
  end
end

-- Removes one job; `parent_key` is where it is detached from. Children, where wanted, have to be removed before.
local function remove_one(base, id, parent_key)
  local key = base .. id
  local dedup = call('HGET', key, 'deid')
  detach_from_parent(key, parent_key)
  local was = take_out(base, id)
  free_deduplication(base, id, dedup)
  if delete_job_keys(key) > 0 then
    emit_trimming(open_queue(base), 'removed', 'jobId', id, 'prev', was or 'unknown')
  end
end

-- The children of each kind that a job has: full keys.
local function children_of(key, kind)
  if kind == 'dependencies' then
    return call('SMEMBERS', key .. ':dependencies')
  elseif kind == 'unsuccessful' then
    return call('ZRANGE', key .. ':unsuccessful', 0, -1)
  end
  return call('HKEYS', key .. ':' .. kind)
end

local function remove_with_children(base, id, parent_key)
  local key = base .. id
  detach_from_parent(key, parent_key)
  for _, kind in ipairs({ 'processed', 'failed', 'unsuccessful', 'dependencies' }) do
    for _, child in ipairs(children_of(key, kind)) do
      local child_base, child_id = base_of(child)
      remove_with_children(child_base, child_id, call('HGET', child, 'parentKey') or key)
    end
  end
  remove_one(base, id, nil)
end
