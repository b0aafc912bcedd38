--[[
change_delay: a delayed job becomes due at another time.
Uses: _queue
KEYS: "prefix:queue:"
ARGV: 1 id   2 delay from now, ms   3 now, ms
Returns: 0, or -1 no such job, -3 it is not delayed
Events: delayed
]]
local base, id, delay, now = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if call('EXISTS', base .. id) == 0 then
  return -1
elseif not call('ZSCORE', base .. 'delayed', id) then
  return -3
end
local q = open_queue(base)
call('HSET', base .. id, 'delay', delay)
hold_until(q, id, now + delay)
emit_trimming(q, 'delayed', 'jobId', id, 'delay', now + delay)
wake_when_due(q)
return 0
