--[[
requeue: a finished job waits again.
Uses: _queue _parents _requeue
KEYS: "prefix:queue:"
ARGV: 1 id   2 completed or failed   3 1 to put it before the others   4 1 to count its attempts anew
  5 1 to count its starts anew
Returns: 1, or -1 no such job, -3 it is not in that state
Events: waiting
]]
local base, id, state = KEYS[1], ARGV[1], ARGV[2]
if call('EXISTS', base .. id) == 0 then
  return -1
elseif call('ZREM', base .. state, id) == 0 then
  return -3
end
local q = open_queue(base)
forget_end(q, id, state)
if ARGV[4] == '1' then
  call('HDEL', base .. id, 'atm')
end
if ARGV[5] == '1' then
  call('HDEL', base .. id, 'ats')
end
line_up(q, id, priority_of(q, id), ARGV[3] == '1')
wake(q)
emit_trimming(q, 'waiting', 'jobId', id, 'prev', state)
return 1
