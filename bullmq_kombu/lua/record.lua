--[[
record: stores what is known of a task and tells those who wait for it. A success is never overwritten.
KEYS: "prefix::kombu:"
ARGV: 1 task id   2 status   3 what is known, opaque   4 how long to keep it, ms, 0 for ever
Returns: 1, or 0 where a success is known already
]]
local key = KEYS[1] .. 'result:' .. ARGV[1]
if redis.call('HGET', key, 'status') == 'SUCCESS' then
  return 0
end
redis.call('HSET', key, 'status', ARGV[2], 'meta', ARGV[3])
if ARGV[4] == '0' then
  redis.call('PERSIST', key)
else
  redis.call('PEXPIRE', key, ARGV[4])
end
redis.call('PUBLISH', key, ARGV[3])
return 1
