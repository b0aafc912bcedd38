--[[
promote: a delayed job waits now.
Uses: _queue
KEYS: "prefix:queue:"
ARGV: 1 id
Returns: 0, or -3 it is not delayed
Events: waiting
]]
local base, id = KEYS[1], ARGV[1]
if call('ZREM', base .. 'delayed', id) == 0 then
  return -3
end
local q = open_queue(base)
line_up(q, id, priority_of(q, id), false)
wake(q)
emit(q, 'waiting', 'jobId', id, 'prev', 'delayed')
if call('EXISTS', base .. id) == 1 then
  call('HSET', base .. id, 'delay', 0)
end
return 0
