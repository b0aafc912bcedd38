--[[
move_to_wait: many failed, completed or delayed jobs wait again, by their priority, those first that are longest in that state.
Uses: _queue _parents _requeue
KEYS: "prefix:queue:"
ARGV: 1 failed, completed or delayed   2 how many at most   3 only those in that state since this time (ms), '' for all
Returns: how many were moved
Events: waiting for each
]]
local base, state = KEYS[1], ARGV[1]
local q = open_queue(base)
local ids = call('ZRANGEBYSCORE', base .. state, '-inf', ARGV[3] == '' and '+inf' or ARGV[3], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ids) do
  if call('EXISTS', base .. id) == 1 then
    if state == 'delayed' then
      call('HSET', base .. id, 'delay', 0)
    else
      forget_end(q, id, state)
    end
    line_up(q, id, priority_of(q, id), false)
    emit_trimming(q, 'waiting', 'jobId', id, 'prev', state)
  end
  call('ZREM', base .. state, id)
end
if #ids > 0 then
  wake(q)
end
return #ids
