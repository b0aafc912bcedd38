--[[
push: puts a message into a queue that Celery made for itself, and wakes its consumer.
KEYS: "prefix::kombu:"
ARGV: 1 queue   2 message   3 priority, lower first   4 how long it is kept where nobody declared the queue, ms   5 '1' to put it
  before the others of its priority
Returns: how many messages are in the queue
]]
local messages, marker = KEYS[1] .. 'messages:' .. ARGV[1], KEYS[1] .. 'marker:' .. ARGV[1]
local kept = redis.call('GET', KEYS[1] .. 'queue:' .. ARGV[1]) or ARGV[4]
-- The number makes the order, and each message a member of its own; numbers below the middle are for those that come back.
local number = redis.call('INCR', KEYS[1] .. 'sequence')
local turn = ARGV[5] == '1' and 2147483648 - number % 2147483648 or 2147483648 + number % 2147483648
redis.call('ZADD', messages, ARGV[3] * 4294967296 + turn, number .. ':' .. ARGV[2])
redis.call('PEXPIRE', messages, kept)
redis.call('ZADD', marker, 0, '0')
redis.call('PEXPIRE', marker, kept)
return redis.call('ZCARD', messages)
