--[[
drain: removes the jobs that wait.
Uses: _queue _parents
KEYS: "prefix:queue:"
ARGV: 1 now, ms   2 1 to remove the delayed ones too
Returns: how many were removed; the current iteration of a scheduler stays
]]
local base = KEYS[1]
local kept = {}
local schedulers = call('ZRANGE', base .. 'repeat', 0, -1, 'WITHSCORES')
for i = 1, #schedulers, 2 do
  kept['repeat:' .. schedulers[i] .. ':' .. string.format('%.0f', schedulers[i + 1])] = true
end

local removed = 0
local function remove_all(ids, take_out)
  for _, id in ipairs(ids) do
    if not kept[id] then
      take_out(id)
      remove_hard(base, id)
      removed = removed + 1
    end
  end
end

for _, list in ipairs({ 'wait', 'paused' }) do
  remove_all(call('LRANGE', base .. list, 0, -1), function(id)
    call('LREM', base .. list, 1, id)
  end)
end
for _, set in ipairs(ARGV[2] == '1' and { 'prioritized', 'delayed' } or { 'prioritized' }) do
  remove_all(call('ZRANGE', base .. set, 0, -1), function(id)
    call('ZREM', base .. set, id)
  end)
end
return removed
