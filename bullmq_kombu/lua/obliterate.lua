--[[
obliterate: removes a paused queue with all that belongs to it, so many jobs at a time.
Uses: _queue _parents _state _remove
KEYS: "prefix:queue:"
ARGV: 1 1 to remove active jobs too   2 how many jobs in this call
Returns: 0 when nothing is left, 1 to be called again, -1 the queue is not paused, -2 it has active jobs
]]
local base, budget = KEYS[1], tonumber(ARGV[2])
if call('HEXISTS', base .. 'meta', 'paused') == 0 then
  return -1
elseif ARGV[1] ~= '1' and call('EXISTS', base .. 'active') == 1 then
  return -2
end

local function remove_all(ids)
  for _, id in ipairs(ids) do
    call('DEL', base .. id .. ':lock')
    local dedup = call('HGET', base .. id, 'deid')
    if dedup then
      call('DEL', base .. 'de:' .. dedup, base .. 'dn:' .. dedup) -- whoever owns it goes as well
    end
    remove_hard(base, id)
  end
  budget = budget - #ids
end

for _, list in ipairs({ 'active', 'wait', 'paused' }) do
  local ids = budget > 0 and call('LRANGE', base .. list, 0, budget - 1) or {}
  if #ids > 0 then
    call('LTRIM', base .. list, #ids, -1)
    remove_all(ids)
  end
end
-- Parents last: those in this queue go with their last child, and the others of another queue's children go here.
for _, set in ipairs({ 'delayed', 'prioritized', 'completed', 'failed', 'waiting-children' }) do
  local ids = budget > 0 and call('ZRANGE', base .. set, 0, budget - 1) or {}
  if #ids > 0 then
    call('ZREM', base .. set, unpack(ids))
    remove_all(ids)
  end
end
if budget <= 0 then
  return 1
end

for _, scheduler in ipairs(call('ZRANGE', base .. 'repeat', 0, -1)) do
  call('DEL', base .. 'repeat:' .. scheduler)
end
for _, key in ipairs({
  'repeat', 'events', 'delay', 'priority', 'stalled-check', 'stalled', 'id', 'pc', 'marker', 'limiter', 'meta',
  'metrics:completed', 'metrics:completed:data', 'metrics:failed', 'metrics:failed:data',
}) do
  call('DEL', base .. key)
end
return 0
