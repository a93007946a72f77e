import { expectAssignable, expectError, expectType } from 'tsd'
import type * as whole from 'qwen3-nvfp4'
import {
  type DatEntry,
  DatReader,
  type DatTensor,
  DatWriter,
  type ElementType,
  elementTypes,
  readDat,
  rewriteDat,
  SafetensorsReader,
  type TensorData,
  writeDat,
} from 'qwen3-nvfp4/dat'

const reader = await DatReader.open('model.dat')
expectType<DatReader>(reader)
expectType<Promise<DatReader>>(DatReader.open(new Uint8Array(8)))
expectError(DatReader.open(3))
expectType<readonly DatEntry[]>(reader.entries)
expectType<DatEntry>(reader.entry('weight'))
expectType<Promise<TensorData>>(reader.read('weight'))
expectAssignable<AsyncIterable<Uint8Array>>(reader.stream('weight', { signal: new AbortController().signal }))
expectAssignable<AsyncDisposable>(reader)

expectType<readonly ElementType[]>(elementTypes)

const writer = await DatWriter.create('out.dat', { entries: 1 })
expectType<Promise<void>>(writer.write('weight', 'float32', [2, 3], new Float32Array(6)))
expectType<Promise<{ bytes: number }>>(writer.finish())
expectError(DatWriter.create('out.dat'))
expectError(writer.write('weight', 'float31', [2, 3], new Float32Array(6)))

const tensors = await readDat('model.dat')
expectAssignable<DatTensor | undefined>(tensors.get('weight'))
expectError(writeDat('out.dat'))
expectError(rewriteDat('model.dat', 'out.dat', { weight: 3 }))
expectType<Promise<{ replaced: number }>>(rewriteDat('model.dat', 'out.dat', { weight: new Float32Array(6) }))
expectType<Promise<SafetensorsReader>>(SafetensorsReader.open('model.safetensors'))

// Both entries describe the same things
expectAssignable<whole.DatEntry>(reader.entry('weight'))
