-- Merges rows into an entity's entry, newer wins. The same rules as `merge` in src/model/packed, where the bytes
-- are drawn. Times are compared as unsigned numbers, each in two halves, because a Lua number holds 53 bits and
-- Lua's comparison of strings follows the server's locale.
-- KEYS[1] the entry; ARGV[1] the entry to merge in; ARGV[2] now, as in a row; ARGV[3] how many future rows are kept

local function parse(entry)
  local rows, at, size = {}, 1, #entry
  while at <= size do
    if at + 27 > size then return nil end
    local length = struct.unpack('>I4', entry, at)
    if length < 24 or at + 3 + length > size then return nil end
    local t1, t2, i1, i2, s1, s2 = struct.unpack('>I4I4I4I4I4I4', entry, at + 4)
    rows[#rows + 1] = {t1, t2, i1, i2, s1, s2, string.sub(entry, at, at + 3 + length)}
    at = at + 4 + length
  end
  return rows
end

-- below 0 when a is older than b, 0 when they are the same row, above 0 when a is newer
local function compare(a, b)
  for i = 1, 6 do
    if a[i] ~= b[i] then return a[i] - b[i] end
  end
  return 0
end

local existing = redis.call('GET', KEYS[1])
local old = existing and parse(existing)
if not old or #old == 0 then
  redis.call('SET', KEYS[1], ARGV[1])
  return 1
end

local new = parse(ARGV[1])
local now1, now2 = struct.unpack('>I4I4', ARGV[2])
local function due(row)
  return row[1] < now1 or (row[1] == now1 and row[2] <= now2)
end

if #old == 1 and #new == 1 and due(old[1]) and due(new[1]) then
  if compare(new[1], old[1]) < 0 or existing == ARGV[1] then return 0 end
  redis.call('SET', KEYS[1], ARGV[1])
  return 1
end

-- Both are newest first; of two rows of the same order the incoming one comes first and stays.
local kept, i, j, future, last = {}, 1, 1, 0, nil
while i <= #new or j <= #old do
  local row
  if j > #old or (i <= #new and compare(new[i], old[j]) >= 0) then
    row, i = new[i], i + 1
  else
    row, j = old[j], j + 1
  end
  if not last or row[1] ~= last[1] or row[2] ~= last[2] then
    kept[#kept + 1] = row[7]
    last = row
    if due(row) then break end
    future = future + 1
  end
end

local merged = table.concat(kept, '', math.max(1, future - tonumber(ARGV[3]) + 1))
if merged == existing then return 0 end
redis.call('SET', KEYS[1], merged)
return 1
