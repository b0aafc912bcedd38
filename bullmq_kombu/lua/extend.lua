--[[
extend: keeps the locks of many deliveries.
KEYS: one "prefix:queue:" for each queue
ARGV: 1 lock, ms, then for each delivery: number of its queue in KEYS, id, token
Returns: the places (from 1) of those that no longer hold their lock
]]
local lost = {}
for at = 2, #ARGV, 3 do
  local base, id, token = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  if redis.call('GET', base .. id .. ':lock') == token then
    redis.call('SET', base .. id .. ':lock', token, 'PX', ARGV[1])
    redis.call('SREM', base .. 'stalled', id)
  else
    lost[#lost + 1] = (at + 1) / 3
  end
end
return lost
