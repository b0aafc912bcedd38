--[[
state_of: which state a job is in.
Uses: _queue _state
KEYS: "prefix:queue:"
ARGV: 1 id
Returns: completed, failed, delayed, active, waiting, waiting-children, prioritized, or unknown
]]
local place = place_of(KEYS[1], ARGV[1])
if place == 'wait' or place == 'paused' then
  return 'waiting'
end
return place or 'unknown'
