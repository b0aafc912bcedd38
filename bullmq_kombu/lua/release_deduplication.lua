--[[
release_deduplication: frees a deduplication id by hand.
KEYS: "prefix:queue:"
ARGV: 1 deduplication id   2 only if this job has it, '' for any
Returns: 1, or 0 where nobody, or another job, has it
]]
local key = KEYS[1] .. 'de:' .. ARGV[1]
if ARGV[2] ~= '' and redis.call('GET', key) ~= ARGV[2] then
  return 0
end
return redis.call('DEL', key)
