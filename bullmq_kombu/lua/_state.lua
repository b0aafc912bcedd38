-- Fragment: where a job is, and taking it away from there. Needs _queue.

local SETS = { 'completed', 'failed', 'delayed', 'prioritized', 'waiting-children' }
local LISTS = { 'active', 'wait', 'paused' }

-- LPOS came with Redis 6.0.6.
local function is_in_list(key, id)
  local place = redis.pcall('LPOS', key, id)
  if type(place) ~= 'table' then
    return place and true or false
  end
  for _, other in ipairs(call('LRANGE', key, 0, -1)) do
    if other == id then
      return true
    end
  end
  return false
end

-- The key of the state that has the job, or nil. The sets are asked first, which costs little.
local function place_of(base, id)
  for _, set in ipairs(SETS) do
    if call('ZSCORE', base .. set, id) then
      return set
    end
  end
  for _, list in ipairs(LISTS) do
    if is_in_list(base .. list, id) then
      return list
    end
  end
  return nil
end

-- Takes the job out of the state that has it. Returns which that was, or nil.
local function take_out(base, id)
  for _, list in ipairs(LISTS) do
    if call('LREM', base .. list, 0, id) > 0 then
      return list
    end
  end
  for _, set in ipairs(SETS) do
    if call('ZREM', base .. set, id) > 0 then
      return set
    end
  end
  return nil
end

-- The jobs that schedulers will do next or have just begun, as a table id -> true: they are removed with their scheduler.
local function scheduled_next(base)
  local found = {}
  local schedulers = call('ZRANGE', base .. 'repeat', 0, -1, 'WITHSCORES')
  for i = 1, #schedulers, 2 do
    found['repeat:' .. schedulers[i] .. ':' .. string.format('%.0f', schedulers[i + 1])] = true
  end
  return found
end
