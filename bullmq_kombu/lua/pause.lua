--[[
pause: from now on no job of the queue is taken.
Uses: _queue
KEYS: "prefix:queue:"
Returns: 0
Events: paused
]]
call('HSET', KEYS[1] .. 'meta', 'paused', 1)
call('DEL', KEYS[1] .. 'marker')
emit(open_queue(KEYS[1]), 'paused')
return 0
