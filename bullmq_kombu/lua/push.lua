--[[
push: puts a message into a queue that Celery made for itself, and wakes its consumer.
KEYS: "prefix::kombu:"
ARGV: 1 queue   2 message   3 how long it is kept where nobody declared the queue, ms   4 '1' to put it first
Returns: how many messages are in the queue
]]
local list, marker = KEYS[1] .. 'list:' .. ARGV[1], KEYS[1] .. 'marker:' .. ARGV[1]
local kept = redis.call('GET', KEYS[1] .. 'queue:' .. ARGV[1]) or ARGV[3]
local length = redis.call(ARGV[4] == '1' and 'LPUSH' or 'RPUSH', list, ARGV[2])
redis.call('PEXPIRE', list, kept)
redis.call('ZADD', marker, 0, '0')
redis.call('PEXPIRE', marker, kept)
return length
