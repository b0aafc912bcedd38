--[[
pop: takes the oldest messages of a queue that Celery made for itself.
KEYS: "prefix::kombu:"
ARGV: 1 queue   2 how many at most
Returns: the messages, oldest first
]]
local list = KEYS[1] .. 'list:' .. ARGV[1]
local messages = redis.call('LRANGE', list, 0, ARGV[2] - 1)
if #messages > 0 then
  redis.call('LTRIM', list, #messages, -1)
  local left = redis.call('PTTL', list)
  if left > 0 then
    redis.call('ZADD', KEYS[1] .. 'marker:' .. ARGV[1], 0, '0')
    redis.call('PEXPIRE', KEYS[1] .. 'marker:' .. ARGV[1], left)
  end
end
return messages
