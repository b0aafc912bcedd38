--[[
extend: keeps the locks of many deliveries. A lock that has expired is taken again while the job is still active and nobody
else has locked it: after an outage the worker that runs it is the one to go on.
Uses: _queue _state
KEYS: one "prefix:queue:" for each queue
ARGV: 1 lock, ms, then for each delivery: number of its queue in KEYS, id, token
Returns: the places (from 1) of those that no longer hold their lock
]]
local lost = {}

local function is_free(base, id)
  return call('EXISTS', base .. id) == 1 and is_in_list(base .. 'active', id)
end

for at = 2, #ARGV, 3 do
  local base, id, token = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local key = base .. id .. ':lock'
  local held = call('GET', key)
  if held == token then
    call('PEXPIRE', key, ARGV[1]) -- allowed also where the server is out of memory, as SET is not
    call('SREM', base .. 'stalled', id)
  elseif not held and is_free(base, id) then
    call('SET', key, token, 'PX', ARGV[1])
    call('SREM', base .. 'stalled', id)
  else
    lost[#lost + 1] = (at + 1) / 3
  end
end
return lost
