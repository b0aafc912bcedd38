--[[
counts: how many jobs some states have.
KEYS: "prefix:queue:"
ARGV: states, as their keys are called
Returns: a number for each; `wait` counts what BullMQ 5 has parked in `paused`, and leaves out a marker of BullMQ 4
]]
local found = {}
local function length(list)
  local key = KEYS[1] .. list
  local last = redis.call('LINDEX', key, -1)
  return redis.call('LLEN', key) - (last and string.sub(last, 1, 2) == '0:' and 1 or 0)
end
for place, state in ipairs(ARGV) do
  if state == 'wait' then
    found[place] = length('wait') + length('paused')
  elseif state == 'active' then
    found[place] = redis.call('LLEN', KEYS[1] .. state)
  else
    found[place] = redis.call('ZCARD', KEYS[1] .. state)
  end
end
return found
