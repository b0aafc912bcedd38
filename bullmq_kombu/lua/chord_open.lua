--[[
chord_open: says how many parts a chord waits for; a chord that is applied again begins anew.
KEYS: "prefix::kombu:"
ARGV: 1 group id   2 how many parts   3 how long to keep it, ms, 0 for ever
Returns: OK
]]
local key = KEYS[1] .. 'chord:' .. ARGV[1]
redis.call('HDEL', key, 'done', 'claim', 'until')
redis.call('HSET', key, 'size', ARGV[2])
if ARGV[3] ~= '0' then
  redis.call('PEXPIRE', key, ARGV[3])
end
return redis.status_reply('OK')
