--[[
pop: takes the next messages of a queue that Celery made for itself.
KEYS: "prefix::kombu:"
ARGV: 1 queue   2 how many at most
Returns: the messages in their order
]]
local key = KEYS[1] .. 'messages:' .. ARGV[1]
local left = redis.call('PTTL', key)
local popped = redis.call('ZPOPMIN', key, ARGV[2])
local messages = {}
for at = 1, #popped, 2 do
  messages[#messages + 1] = string.match(popped[at], '^%d+:(.*)$')
end
if #messages > 0 and redis.call('EXISTS', key) == 1 and left > 0 then
  redis.call('ZADD', KEYS[1] .. 'marker:' .. ARGV[1], 0, '0')
  redis.call('PEXPIRE', KEYS[1] .. 'marker:' .. ARGV[1], left)
end
return messages
