--[[
clean: removes old jobs of one state.
Uses: _queue _parents _state _remove
KEYS: "prefix:queue:"
ARGV: 1 state, as its key is called   2 what is as old as this (ms) goes   3 how many at most
Returns: the ids removed. Jobs in a worker's hands and what schedulers will do next stay
Events: cleaned
]]
local base, state, before, most = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local LOOK = 1000 -- how many are looked at together

-- When the job was last heard of, in the fields that tell it for its state.
local AGE = {
  delayed = { 'processedOn', 'timestamp' }, prioritized = { 'timestamp' },
  wait = { 'finishedOn', 'processedOn', 'timestamp' }, active = { 'finishedOn', 'processedOn', 'timestamp' },
}

local function is_old(id)
  for _, field in ipairs(AGE[state]) do
    local moment = tonumber(call('HGET', base .. id, field) or nil)
    if moment then
      return moment <= before
    end
  end
  return true
end

local cleaned = {}

local function finished()
  for _, id in ipairs(call('ZRANGEBYSCORE', base .. state, '-inf', before, 'LIMIT', 0, most)) do
    call('ZREM', base .. state, id)
    remove_hard(base, id)
    cleaned[#cleaned + 1] = id
  end
end

-- Looks through a list or set from its oldest end, a piece at a time; what is removed no longer takes up a place.
local function others(key, read, take_away)
  local kept, at = scheduled_next(base), 0
  while #cleaned < most do
    local ids = read(key, at)
    if #ids == 0 then
      return
    end
    for _, id in ipairs(ids) do
      local stays = kept[id] or not is_old(id) or (state == 'active' and call('EXISTS', base .. id .. ':lock') == 1)
      if stays or #cleaned >= most then
        at = at + 1
      else
        take_away(key, id)
        remove_hard(base, id)
        cleaned[#cleaned + 1] = id
      end
    end
  end
end

local function oldest_of_list(key, at)
  local ids = call('LRANGE', key, -at - LOOK, -at - 1)
  local turned = {}
  for i = #ids, 1, -1 do
    turned[#turned + 1] = ids[i]
  end
  return turned
end

if state == 'completed' or state == 'failed' then
  finished()
elseif state == 'delayed' or state == 'prioritized' then
  others(base .. state, function(key, at)
    return call('ZRANGE', key, at, at + LOOK - 1)
  end, function(key, id)
    call('ZREM', key, id)
  end)
else
  for _, list in ipairs(state == 'wait' and { 'paused', 'wait' } or { state }) do
    others(base .. list, oldest_of_list, function(key, id)
      call('LREM', key, -1, id)
    end)
  end
end
emit(open_queue(base), 'cleaned', 'count', #cleaned)
return cleaned
