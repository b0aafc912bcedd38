--[[
update_data: replaces a job's data.
KEYS: "prefix:queue:"
ARGV: 1 id   2 data, JSON
Returns: 0, or -1 no such job
]]
local key = KEYS[1] .. ARGV[1]
if redis.call('EXISTS', key) == 0 then
  return -1
end
redis.call('HSET', key, 'data', ARGV[2])
return 0
