--[[
pause: from now on no job of the queue is taken.
Uses: _queue
KEYS: "prefix:queue:"
Returns: 0
Events: paused
]]
local base = KEYS[1]
call('HSET', base .. 'meta', 'paused', 1)
call('DEL', base .. 'marker')
local q = open_queue(base)
-- Where BullMQ 5 looks for the jobs of a paused queue, those that wait are parked, as it does: its resume puts that list in the
-- place of `wait`. What was parked before is older, and stays at the tail.
local wait, parked = base .. 'wait', base .. 'paused'
if call('EXISTS', parked) == 1 then
  repeat
    local oldest = call('LRANGE', wait, -1000, -1)
    call('LTRIM', wait, 0, -#oldest - 1)
    for at = #oldest, 1, -1 do
      call('LPUSH', parked, oldest[at])
    end
  until #oldest == 0
elseif q.parks and call('EXISTS', wait) == 1 then
  call('RENAME', wait, parked)
end
emit(q, 'paused')
return 0
