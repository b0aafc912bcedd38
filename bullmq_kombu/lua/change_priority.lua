--[[
change_priority: gives a job another priority, and with it another place if it waits.
Uses: _queue
KEYS: "prefix:queue:"
ARGV: 1 id   2 priority   3 1 to put it before the others of this priority
Returns: 0, or -1 no such job
]]
local base, id, priority, first = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
if call('EXISTS', base .. id) == 0 then
  return -1
end
local q = open_queue(base)
local waited = call('ZREM', base .. 'prioritized', id) + call('LREM', base .. 'wait', -1, id)
  + call('LREM', base .. 'paused', -1, id)
if waited > 0 then
  if first then
    line_up_first(q, id, priority)
  else
    line_up(q, id, priority, false)
  end
  wake(q)
end
call('HSET', base .. id, 'priority', priority)
return 0
