--[[
resume: jobs of the queue are taken again. Those that BullMQ 5 had parked in `paused` come before the others of `wait`.
Uses: _queue
KEYS: "prefix:queue:"
ARGV: 1 1 at the first call, 0 when it goes on   2 how many parked jobs to move at most
Returns: how many are still parked
Events: resumed, at the first call
]]
local base, most = KEYS[1], tonumber(ARGV[2])
call('HDEL', base .. 'meta', 'paused')
-- The order stays: the oldest of each list is at its tail, and what was parked is older.
local parked = call('LRANGE', base .. 'paused', 0, most - 1)
if #parked > 0 then
  call('RPUSH', base .. 'wait', unpack(parked))
  call('LTRIM', base .. 'paused', #parked, -1)
end
local q = open_queue(base)
if call('EXISTS', base .. 'wait', base .. 'prioritized') > 0 then
  wake(q)
else
  wake_when_due(q)
end
if ARGV[1] == '1' then
  emit(q, 'resumed')
end
return call('LLEN', base .. 'paused')
