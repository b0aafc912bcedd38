--[[
add_log: a line for a job's log.
KEYS: "prefix:queue:"
ARGV: 1 id   2 line   3 how many of the newest lines are kept, '' for all
Returns: how many lines there are now, or -1 no such job
]]
local key = KEYS[1] .. ARGV[1]
if redis.call('EXISTS', key) == 0 then
  return -1
end
local lines = redis.call('RPUSH', key .. ':logs', ARGV[2])
local kept = tonumber(ARGV[3])
if kept and lines > kept then
  -- To keep none is a list of which nothing remains.
  redis.call('LTRIM', key .. ':logs', kept > 0 and -kept or lines, -1)
  lines = kept
end
return lines
