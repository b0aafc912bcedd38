--[[
update_progress: what a job tells of how far it is.
Uses: _queue
KEYS: "prefix:queue:"
ARGV: 1 id   2 progress, JSON
Returns: 0, or -1 no such job
Events: progress
]]
local key = KEYS[1] .. ARGV[1]
if call('EXISTS', key) == 0 then
  return -1
end
call('HSET', key, 'progress', ARGV[2])
emit_trimming(open_queue(KEYS[1]), 'progress', 'jobId', ARGV[1], 'data', ARGV[2])
return 0
