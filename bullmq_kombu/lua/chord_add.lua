--[[
chord_add: one part of a chord has ended; each part counts once, however often it is run. Who adds the last part may go on
with the chord until its claim runs out.
KEYS: "prefix::kombu:"
ARGV: 1 group id   2 part: its place and task id   3 its outcome, opaque   4 now, ms   5 token of the claim   6 how long the claim
  holds, ms   7 how long to keep the chord, ms, 0 for ever   8 how long to keep the saved group, ms, 0 for ever
Returns: 1 where the chord is complete and the claim is the caller's, else 0
]]
local key = KEYS[1] .. 'chord:' .. ARGV[1]
if redis.call('HEXISTS', key, 'done') == 1 then
  return 0
end
if redis.call('HSETNX', key, 'part:' .. ARGV[2], ARGV[3]) == 1 then
  redis.call('HINCRBY', key, 'count', 1)
end
if ARGV[7] ~= '0' then
  redis.call('PEXPIRE', key, ARGV[7])
end
if ARGV[8] ~= '0' then
  redis.call('PEXPIRE', KEYS[1] .. 'group:' .. ARGV[1], ARGV[8])
end
local found = redis.call('HMGET', key, 'size', 'more', 'count', 'claim', 'until')
local size = tonumber(found[1] or nil)
if not size or tonumber(found[3]) ~= size + (tonumber(found[2] or 0) or 0) then
  return 0
end
if found[4] and tonumber(found[5]) > tonumber(ARGV[4]) then
  return 0
end
redis.call('HSET', key, 'claim', ARGV[5], 'until', ARGV[4] + ARGV[6])
return 1
